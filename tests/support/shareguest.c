/* The first process of a Linux guest that mounts a share, reads and writes in it, and says on its console what came of
   it. `share=TYPE:TAG` on the kernel's command line names the file system. */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void said(const char *what, int failed) {
    printf("SHARE %s: %s\n", what, failed ? strerror(errno) : "done");
}

static void read_file(const char *path) {
    char data[256];
    int fd = open(path, O_RDONLY);
    long size = fd < 0 ? -1 : read(fd, data, sizeof data - 1);
    if (size < 0) {
        said(path, 1);
        return;
    }
    data[size] = 0;
    printf("SHARE %s: %s\n", path, data);
}

static void write_file(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 04755);
    said(path, fd < 0 || write(fd, "from the guest", 14) != 14 || fchmod(fd, 04755) || close(fd));
}

int main(void) {
    char path[64], line[2048] = "", type[16] = "", tag[64] = "";
    setvbuf(stdout, NULL, _IONBF, 0);
    mount("proc", "/proc", "proc", 0, NULL);
    for (int number = 0; number < 100; number++) {
        snprintf(path, sizeof path, "/modules/%02d.ko", number);
        int module = open(path, O_RDONLY);
        if (module < 0)
            break;
        if (syscall(SYS_finit_module, module, "", 0) && errno != EEXIST)
            said(path, 1);
        close(module);
    }
    FILE *cmdline = fopen("/proc/cmdline", "r");
    char *share = cmdline && fgets(line, sizeof line, cmdline) ? strstr(line, "share=") : NULL;
    if (share && sscanf(share, "share=%15[^:]:%63[^ \n]", type, tag) == 2) {
        const char *options = strcmp(type, "9p") ? NULL : "trans=virtio,version=9p2000.L,msize=262144";
        mkdir("/share", 0755);
        said("mount", mount(tag, "/share", type, 0, options));
        read_file("/share/hello");
        read_file("/share/outside");
        write_file("/share/new");
        read_file("/share/new");
        struct stat found;
        if (!stat("/share/new", &found))
            printf("SHARE mode: %o uid %d\n", (unsigned)found.st_mode & 07777, (int)found.st_uid);
    }
    printf("SHARE over\n");
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}
