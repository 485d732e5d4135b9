/*
 * Preloaded into a daemon under test: counts its calls into libc and has one of them fail, or kills the
 * process just before it. The test shares the control block below as a file named by LIBC_FAULTS.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NAMES 4096
#define NAME_SIZE 16

struct control {
    atomic_int armed;
    atomic_int count; /* calls since it was armed */
    atomic_int target; /* the call to strike, counted from 1; 0 for none */
    atomic_int error; /* what it fails with; 0 kills the process */
    atomic_int struck;
    atomic_int padding;
    char names[NAMES][NAME_SIZE]; /* by number of the call */
};

static struct control *control;

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv("LIBC_FAULTS");
    if (path == NULL)
        return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return;
    void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (shared != MAP_FAILED)
        control = shared;
}

/* Count a call; return whether it is to fail, with errno set. */
static int strikes(const char *name)
{
    if (control == NULL || !control->armed)
        return 0;
    int number = ++control->count;
    if (number < NAMES)
        strncpy(control->names[number], name, NAME_SIZE - 1);
    if (number != control->target)
        return 0;
    control->struck = 1;
    if (control->error == 0) {
        syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
        for (;;)
            syscall(SYS_pause);
    }
    errno = control->error;
    return 1;
}

#define NEXT(name) \
    static __typeof__(name) *next; \
    if (next == NULL) \
    next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define CALL(type, name, parameters, arguments, failure) \
    type name parameters \
    { \
        NEXT(name); \
        return strikes(#name) ? (failure) : next arguments; \
    }

/* Files */
CALL(int, fsync, (int fd), (fd), -1)
CALL(int, renameat, (int from, const char *old, int to, const char *name), (from, old, to, name), -1)
CALL(int, rename, (const char *old, const char *name), (old, name), -1)
CALL(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), -1)
CALL(int, unlink, (const char *path), (path), -1)
CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), -1)
CALL(int, rmdir, (const char *path), (path), -1)
CALL(int, symlinkat, (const char *to, int at, const char *path), (to, at, path), -1)
CALL(ssize_t, readlinkat, (int at, const char *path, char *to, size_t size), (at, path, to, size), -1)
CALL(int, ftruncate64, (int fd, off64_t size), (fd, size), -1)
CALL(int, flock, (int fd, int operation), (fd, operation), -1)
CALL(int, fchmod, (int fd, mode_t mode), (fd, mode), -1)
CALL(int, chmod, (const char *path, mode_t mode), (path, mode), -1)
CALL(int, fstat64, (int fd, struct stat64 *found), (fd, found), -1)
CALL(int, stat64, (const char *path, struct stat64 *found), (path, found), -1)
CALL(int, lstat64, (const char *path, struct stat64 *found), (path, found), -1)
CALL(int, fstatat64, (int at, const char *path, struct stat64 *found, int flags), (at, path, found, flags), -1)
CALL(DIR *, opendir, (const char *path), (path), NULL)
CALL(DIR *, fdopendir, (int fd), (fd), NULL)
CALL(ssize_t, pread64, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at), -1)

/* Sockets */
CALL(int, socket, (int domain, int type, int protocol), (domain, type, protocol), -1)
CALL(int, socketpair, (int domain, int type, int protocol, int pair[2]), (domain, type, protocol, pair), -1)
CALL(int, bind, (int fd, const struct sockaddr *address, socklen_t size), (fd, address, size), -1)
CALL(int, listen, (int fd, int backlog), (fd, backlog), -1)
CALL(int, connect, (int fd, const struct sockaddr *address, socklen_t size), (fd, address, size), -1)
CALL(int, accept4, (int fd, struct sockaddr *address, socklen_t *size, int flags), (fd, address, size, flags), -1)
CALL(int, getsockopt, (int fd, int level, int name, void *value, socklen_t *size), (fd, level, name, value, size), -1)
CALL(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t size), (fd, level, name, value, size), -1)
CALL(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags), -1)
CALL(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags), -1)

/* recv(2) and send(2) are left alone: by these the event loop wakes itself, and errors there are its own. */

/* Processes and threads; these return what others put into errno. */
CALL(int, waitid, (idtype_t type, id_t id, siginfo_t *info, int options), (type, id, info, options), -1)
CALL(int, posix_spawn,
    (pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
        char *const arguments[], char *const environment[]),
    (pid, path, actions, attributes, arguments, environment), errno)
CALL(int, pthread_create,
    (pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument),
    (thread, attributes, start, argument), errno)

/* Calls with a variable number of arguments. What an interpreter does for itself with 0 to 2 is left alone. */
#define LAST(kind, before, into) \
    va_list rest; \
    va_start(rest, before); \
    kind into = va_arg(rest, kind); \
    va_end(rest)

int open64(const char *path, int flags, ...)
{
    NEXT(open64);
    LAST(mode_t, flags, mode);
    return strikes("open") ? -1 : next(path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...)
{
    NEXT(openat64);
    LAST(mode_t, flags, mode);
    return strikes("openat") ? -1 : next(at, path, flags, mode);
}

int ioctl(int fd, unsigned long request, ...)
{
    NEXT(ioctl);
    LAST(void *, request, argument);
    return strikes("ioctl") ? -1 : next(fd, request, argument);
}

int fcntl64(int fd, int command, ...)
{
    NEXT(fcntl64);
    LAST(void *, command, argument);
    int duplicates = command == F_DUPFD_CLOEXEC;
    return duplicates && strikes("dup") ? -1 : next(fd, command, argument);
}

ssize_t write(int fd, const void *from, size_t size)
{
    NEXT(write);
    /* A single byte wakes the event loop up: without it nothing that follows would be the product's. */
    return fd > 2 && size > 1 && strikes("write") ? -1 : next(fd, from, size);
}

ssize_t read(int fd, void *to, size_t size)
{
    NEXT(read);
    return strikes("read") ? -1 : next(fd, to, size);
}

/* pidfd_open(2), pidfd_send_signal(2) and memfd_create(2) have no other way in some versions of libc. */
long syscall(long number, ...)
{
    static long (*next)(long, ...);
    if (next == NULL)
        next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
    long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    int counted = number == SYS_pidfd_open || number == SYS_pidfd_send_signal;
    return counted && strikes(number == SYS_pidfd_open ? "pidfd_open" : "pidfd_signal") ? -1 : next(number, a, b, c, d, e, f);
}
