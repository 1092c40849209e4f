/* The floor of spawning: the least that a program can do to run /bin/true in new namespaces, again
 * and again. What a library takes beyond this is what it does for its user.
 *
 * usage: spawn NAMESPACES ITERATIONS; NAMESPACES is 0, 1 (uts), 5 (also mount, pid, ipc, net) or 8
 * (also cgroup, time, user); as root. Prints the nanoseconds that all iterations took.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

static char stack[64 * 1024] __attribute__((aligned(16)));
static int gate[2];

static void must(long result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "spawn: %s: %s\n", what, strerror(errno));
        _exit(125);
    }
}

static void run(void)
{
    char *argv[] = {"true", NULL};
    char *envp[] = {NULL};
    execve("/bin/true", argv, envp);
    _exit(127);
}

/* Shares the memory of its parent, which sleeps. */
static int direct(void *unused)
{
    (void)unused;
    run();
    return 0;
}

/* Waits until its ids are mapped. */
static int mapped(void *unused)
{
    char byte;
    (void)unused;
    close(gate[1]);
    must(read(gate[0], &byte, 1), "read");
    must(unshare(CLONE_NEWCGROUP | CLONE_NEWTIME), "unshare");
    run();
    return 0;
}

static void write_file(int pid, const char *name, const char *text)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    must(fd, path);
    must(write(fd, text, strlen(text)), path);
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: spawn NAMESPACES ITERATIONS\n");
        return 125;
    }
    int namespaces = atoi(argv[1]);
    long iterations = atol(argv[2]);
    int flags = 0;
    if (namespaces >= 1)
        flags |= CLONE_NEWUTS;
    if (namespaces >= 5)
        flags |= CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNET;
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long i = 0; i < iterations; i++) {
        int pid;
        if (namespaces < 8) {
            pid = clone(direct, stack + sizeof stack, flags | CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
            must(pid, "clone");
        } else {
            must(pipe2(gate, O_CLOEXEC), "pipe2");
            pid = clone(mapped, stack + sizeof stack, flags | CLONE_NEWUSER | SIGCHLD, NULL);
            must(pid, "clone");
            write_file(pid, "uid_map", "0 0 1");
            write_file(pid, "gid_map", "0 0 1");
            must(write(gate[1], "0", 1), "write");
            close(gate[0]);
            close(gate[1]);
        }
        int status;
        must(waitpid(pid, &status, 0), "waitpid");
        if (status != 0) {
            fprintf(stderr, "spawn: the program ended with %d\n", status);
            return 125;
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%lld\n", (end.tv_sec - start.tv_sec) * 1000000000LL + (end.tv_nsec - start.tv_nsec));
    return 0;
}
