/*
 * Watches the QEMUs of several machines from outside, once a millisecond: `lives NODE CGROUP VMDIR ...`, three words
 * for each machine. CGROUP is the control group in which its service starts QEMUs, VMDIR the directory of its VMs.
 *
 * A QEMU lives from the sample that first saw it to the one that last did: it is a process of the group, not a zombie
 * (cgroup.procs names none), whose command line is that of a QEMU. Its guest runs from the first sample in which its
 * serial log had grown to the last: a guest that stands still prints nothing. What it prints says who ran, whatever
 * processes there are.
 *
 * Each line on standard input is answered by the samples, the worst time between two of them, and one line for each
 * QEMU seen so far, all times in nanoseconds of CLOCK_MONOTONIC. A line `again` has the worst time measured anew.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NODES 8
#define LIVES 4096
#define MILLISECOND 1000000LL

struct node {
    const char *name, *procs, *vms;
};

struct life {
    int node, pid, seen; /* `seen` in the current sample */
    int ended;
    char vm[64], log[4096];
    long long size;
    long long first, last, first_ran, last_ran;
};

static struct node nodes[NODES];
static struct life lives[LIVES];
static int node_count, life_count;
static long long samples, worst;

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static ssize_t content(const char *path, char *buffer, size_t size)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length;
    if (file < 0)
        return -1;
    length = read(file, buffer, size - 1);
    close(file);
    if (length >= 0)
        buffer[length] = 0;
    return length;
}

static long long size_of(const char *path)
{
    struct stat found;
    return stat(path, &found) ? 0 : (long long)found.st_size;
}

/* Return the VM of a process that is a QEMU, NULL of others: it is the word behind `-name`. */
static const char *vm_of(int pid)
{
    static char words[65536];
    char path[64];
    ssize_t length;
    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    if ((length = content(path, words, sizeof words)) <= 0 || !strstr(words, "qemu-system"))
        return NULL;
    for (char *word = words; word < words + length; word += strlen(word) + 1)
        if (!strcmp(word, "-name"))
            return word + 6;
    return NULL;
}

static struct life *known(int node, int pid)
{
    for (int i = life_count - 1; i >= 0; i--)
        if (lives[i].pid == pid && lives[i].node == node && !lives[i].ended)
            return &lives[i];
    return NULL;
}

static void see(int node, int pid, long long when)
{
    struct life *life = known(node, pid);
    const char *vm;
    if (!life) {
        if (!(vm = vm_of(pid)))
            return;
        if (life_count == LIVES || strlen(vm) >= sizeof life->vm)
            exit(3);
        life = &lives[life_count++];
        *life = (struct life){ .node = node, .pid = pid, .first = when };
        strcpy(life->vm, vm);
        snprintf(life->log, sizeof life->log, "%s/%s/serial.log", nodes[node].vms, vm);
        life->size = size_of(life->log);
    }
    life->seen = 1;
    life->last = when;
}

static void sample(long long when)
{
    static char pids[65536];
    for (int node = 0; node < node_count; node++) {
        if (content(nodes[node].procs, pids, sizeof pids) <= 0)
            continue;
        for (char *pid = pids; *pid; pid = strchr(pid, '\n') + 1)
            see(node, atoi(pid), when);
    }
    for (int i = 0; i < life_count; i++) {
        struct life *life = &lives[i];
        long long size;
        if (life->ended)
            continue;
        if ((size = size_of(life->log)) != life->size) {
            life->size = size;
            life->last_ran = when;
            if (!life->first_ran)
                life->first_ran = when;
        }
        life->ended = !life->seen;
        life->seen = 0;
    }
    samples++;
}

static void answer(void)
{
    char line[64];
    if (!fgets(line, sizeof line, stdin))
        exit(0);
    printf("%lld %lld %d\n", samples, worst, life_count);
    for (int i = 0; i < life_count; i++) {
        struct life *life = &lives[i];
        printf("%s %d %s %d %lld %lld %lld %lld\n", nodes[life->node].name, life->pid, life->vm, life->ended,
               life->first, life->last, life->first_ran, life->last_ran);
    }
    fflush(stdout);
    if (!strcmp(line, "again\n"))
        samples = worst = 0;
}

int main(int count, char **words)
{
    struct pollfd input = { .fd = 0, .events = POLLIN };
    long long before, next;
    if (count % 3 != 1 || count > 1 + 3 * NODES)
        return 2;
    setvbuf(stdin, NULL, _IONBF, 0);
    for (node_count = 0; 3 * node_count + 1 < count; node_count++)
        nodes[node_count] =
            (struct node){ words[3 * node_count + 1], words[3 * node_count + 2], words[3 * node_count + 3] };
    mlockall(MCL_CURRENT | MCL_FUTURE);
    if (sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 10 }))
        setpriority(PRIO_PROCESS, 0, -20); /* real-time priority is not for everybody */
    for (before = next = now();; next += MILLISECOND) {
        struct timespec until;
        long long when = now();
        if (when - before > worst)
            worst = when - before;
        before = when;
        sample(when);
        if (poll(&input, 1, 0) > 0)
            answer();
        if (next < when - MILLISECOND)
            next = when; /* what was missed is not made up for */
        until = (struct timespec){ (next + MILLISECOND) / 1000000000LL, (next + MILLISECOND) % 1000000000LL };
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
}
