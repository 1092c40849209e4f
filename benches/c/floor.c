/* The floor of what a container costs: the least that a program can do to run a command in five
 * namespaces of its own, with a private /proc and another root. No limits, no image, no seccomp, no
 * checks; what a runtime takes beyond this is what it does for its user.
 *
 * usage: floor ROOTFS COMMAND [ARGUMENT...]; as root; the status is the command's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(long result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
        _exit(125);
    }
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: floor ROOTFS COMMAND [ARGUMENT...]\n");
        return 125;
    }
    struct clone_args args = {
        .flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET,
        .exit_signal = SIGCHLD,
    };
    long pid = syscall(SYS_clone3, &args, sizeof args);
    must(pid, "clone3");
    if (pid == 0) {
        must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "make / private");
        /* A new root must be a mount. */
        must(mount(argv[1], argv[1], NULL, MS_BIND | MS_REC, NULL), "bind the root");
        must(chdir(argv[1]), "chdir");
        must(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "mount proc");
        /* The old root comes to lie on the new one, and is taken away. See pivot_root(2). */
        must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
        must(umount2(".", MNT_DETACH), "detach the old root");
        must(chdir("/"), "chdir /");
        execv(argv[2], argv + 2);
        must(-1, argv[2]);
    }
    int status;
    must(waitpid((pid_t)pid, &status, 0), "waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
