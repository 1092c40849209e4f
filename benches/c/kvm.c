/*
 * What raw ioctls cost: the floor that the wrapper is measured against. Prints nanoseconds a round, of the
 * thread's CPU time, which others that use the machine do not lengthen; for a kick, of real time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define MSRS 1024

static int kvm;

static int check(int ret, const char *what)
{
	if (ret < 0) {
		perror(what);
		exit(1);
	}
	return ret;
}

static uint64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

struct machine {
	int vm, vcpu;
	char *memory;
	size_t size;
	struct kvm_run *run;
	size_t run_size;
};

struct cpuid {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[80];
};

/* A machine with this memory, and a vCPU without registers. */
static struct machine make(void *memory, size_t size)
{
	struct machine m = { .memory = memory, .size = size };

	m.vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	struct kvm_userspace_memory_region region = {
		.memory_size = size, .userspace_addr = (uintptr_t)memory
	};
	check(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	m.vcpu = check(ioctl(m.vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	m.run_size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	m.run = mmap(0, m.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	return m;
}

static struct machine start(const uint8_t *code, size_t len, size_t size)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rsp = 0x1000, .rflags = 2 };
	static struct cpuid cpuid;
	void *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct machine m = make(memory, size);

	memcpy(m.memory + 0x1000, code, len);
	cpuid.head.nent = 80;
	check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	check(ioctl(m.vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
	check(ioctl(m.vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	check(ioctl(m.vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(m.vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	return m;
}

static void end(struct machine m)
{
	munmap(m.run, m.run_size);
	close(m.vcpu);
	close(m.vm);
	munmap(m.memory, m.size);
}

static void until(struct machine m, unsigned reason)
{
	check(ioctl(m.vcpu, KVM_RUN, 0), "KVM_RUN");
	if (m.run->exit_reason != reason) {
		fprintf(stderr, "exit %u\n", m.run->exit_reason);
		exit(1);
	}
}

/* The state of a vCPU, and of the machine's clock. */
struct state {
	struct cpuid cpuid;
	struct kvm_mp_state mp_state;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xsave xsave;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debug;
	struct kvm_vcpu_events events;
	struct kvm_clock_data clock;
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entries[MSRS];
	} msrs;
};

static void take(struct machine m, struct state *s)
{
	static struct {
		struct kvm_msr_list head;
		uint32_t indices[MSRS];
	} list;
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one;
	unsigned n = 0;

	list.head.nmsrs = MSRS;
	check(ioctl(kvm, KVM_GET_MSR_INDEX_LIST, &list), "KVM_GET_MSR_INDEX_LIST");
	for (unsigned i = 0; i < list.head.nmsrs; i++) {
		one.head.nmsrs = 1;
		one.entry.index = list.head.indices[i];
		if (ioctl(m.vcpu, KVM_GET_MSRS, &one) == 1)
			s->msrs.entries[n++] = one.entry;
	}
	s->msrs.head.nmsrs = n;
	s->cpuid.head.nent = 80;
	check(ioctl(m.vcpu, KVM_GET_CPUID2, &s->cpuid), "KVM_GET_CPUID2");
	check(ioctl(m.vcpu, KVM_GET_MP_STATE, &s->mp_state), "KVM_GET_MP_STATE");
	check(ioctl(m.vcpu, KVM_GET_REGS, &s->regs), "KVM_GET_REGS");
	check(ioctl(m.vcpu, KVM_GET_SREGS, &s->sregs), "KVM_GET_SREGS");
	check(ioctl(m.vcpu, KVM_GET_XSAVE, &s->xsave), "KVM_GET_XSAVE");
	check(ioctl(m.vcpu, KVM_GET_XCRS, &s->xcrs), "KVM_GET_XCRS");
	check(ioctl(m.vcpu, KVM_GET_DEBUGREGS, &s->debug), "KVM_GET_DEBUGREGS");
	check(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &s->events), "KVM_GET_VCPU_EVENTS");
	check(ioctl(m.vm, KVM_GET_CLOCK, &s->clock), "KVM_GET_CLOCK");
}

/* What cannot be written as it was read is left, one register at a time. */
static void put_msrs(struct machine m, const struct state *s)
{
	unsigned done = 0, all = s->msrs.head.nmsrs;
	static struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entries[MSRS];
	} rest;

	while (done < all) {
		rest.head.nmsrs = all - done;
		memcpy(rest.entries, s->msrs.entries + done, (all - done) * sizeof rest.entries[0]);
		int set = check(ioctl(m.vcpu, KVM_SET_MSRS, &rest), "KVM_SET_MSRS");
		done += set + 1;
	}
}

static struct machine put(struct state *s, int file, size_t size)
{
	void *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
	struct machine m = make(memory, size);
	struct kvm_clock_data clock = { .clock = s->clock.clock };

	check(ioctl(m.vcpu, KVM_SET_CPUID2, &s->cpuid), "KVM_SET_CPUID2");
	check(ioctl(m.vcpu, KVM_SET_MP_STATE, &s->mp_state), "KVM_SET_MP_STATE");
	check(ioctl(m.vcpu, KVM_SET_REGS, &s->regs), "KVM_SET_REGS");
	check(ioctl(m.vcpu, KVM_SET_SREGS, &s->sregs), "KVM_SET_SREGS");
	check(ioctl(m.vcpu, KVM_SET_XSAVE, &s->xsave), "KVM_SET_XSAVE");
	check(ioctl(m.vcpu, KVM_SET_XCRS, &s->xcrs), "KVM_SET_XCRS");
	check(ioctl(m.vcpu, KVM_SET_DEBUGREGS, &s->debug), "KVM_SET_DEBUGREGS");
	put_msrs(m, s);
	check(ioctl(m.vcpu, KVM_SET_VCPU_EVENTS, &s->events), "KVM_SET_VCPU_EVENTS");
	check(ioctl(m.vm, KVM_SET_CLOCK, &clock), "KVM_SET_CLOCK");
	return m;
}

/* Pages of zeros become holes. */
static void save(struct machine m, int file)
{
	static const char zeros[PAGE];

	check(ftruncate(file, 0), "ftruncate");
	check(ftruncate(file, m.size), "ftruncate");
	for (size_t at = 0; at < m.size; at += PAGE)
		if (memcmp(m.memory + at, zeros, PAGE))
			check(pwrite(file, m.memory + at, PAGE, at), "pwrite");
}

static atomic_ulong kicked_at;
static atomic_uint entering;
static long kick_rounds;

static void on_kick(int signal)
{
	(void)signal;
}

struct runner {
	struct machine m;
	atomic_int tid;
	uint64_t total;
};

static void *run_until_kicked(void *arg)
{
	struct runner *r = arg;

	r->tid = syscall(SYS_gettid);
	for (long i = 0; i < kick_rounds; i++) {
		entering++;
		if (ioctl(r->m.vcpu, KVM_RUN, 0) != -1 || errno != EINTR) {
			fprintf(stderr, "KVM_RUN was not interrupted\n");
			exit(1);
		}
		r->total += now(CLOCK_MONOTONIC) - kicked_at;
	}
	return 0;
}

/* From the kick to the return in the other thread; the mean. */
static double kick(struct machine m, long rounds)
{
	static struct runner r;
	pthread_t thread;
	struct sigaction action = { .sa_handler = on_kick };

	r.m = m;
	kick_rounds = rounds;
	sigaction(SIGUSR1, &action, 0);
	pthread_create(&thread, 0, run_until_kicked, &r);
	for (long i = 0; i < rounds; i++) {
		while (entering != i + 1)
			sched_yield();
		usleep(200);
		kicked_at = now(CLOCK_MONOTONIC);
		syscall(SYS_tgkill, getpid(), r.tid, SIGUSR1);
	}
	pthread_join(thread, 0);
	return (double)r.total / rounds;
}

int main(int argc, char **argv)
{
	static const uint8_t out[] = { 0xe6, 0x80, 0xeb, 0xfc };
	static const uint8_t in[] = { 0xe4, 0x80, 0xeb, 0xfc };
	static const uint8_t mmio[] = { 0xb8, 0x00, 0x90, 0x8e, 0xd8, 0xa2, 0x00, 0x00, 0xeb, 0xfb };
	static const uint8_t load[] = { 0xb8, 0x00, 0x90, 0x8e, 0xd8, 0xa0, 0x00, 0x00, 0xeb, 0xfb };
	static const uint8_t spin[] = { 0xeb, 0xfe };
	static const uint8_t hlt[] = { 0xf4 };
	enum { PORT, PORT_READ, MEMORY, MEMORY_READ, STOP, KICK, REGISTERS, MACHINE, SAVE, RESTORE, NONE };
	static const char *const names[] = {
		"port", "port-read", "memory", "memory-read", "stop", "kick", "registers", "machine",
		"save", "restore",
	};
	static const struct {
		const uint8_t *code;
		size_t len;
	} codes[] = {
		{ out, sizeof out }, { in, sizeof in }, { mmio, sizeof mmio }, { load, sizeof load },
		{ spin, sizeof spin }, { spin, sizeof spin },
	};
	static struct state state;
	long rounds = argc > 2 ? atol(argv[2]) : 0;
	size_t size = argc > 3 ? strtoul(argv[3], 0, 0) << 20 : 0x10000;
	size_t used = argc > 4 ? strtoul(argv[4], 0, 0) << 20 : 0;
	volatile unsigned seen = 0;
	struct machine m = { 0 };
	int what = 0, file = -1;

	while (what < NONE && (argc < 2 || strcmp(argv[1], names[what])))
		what++;
	if (what == NONE || rounds < 1 || size < 0x2000 || used > size) {
		fprintf(stderr, "usage: kvm WHAT ROUNDS [MIB [MIB-IN-USE]]\n");
		return 2;
	}
	kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	if (what != MACHINE)
		m = what <= KICK ? start(codes[what].code, codes[what].len, size) : start(hlt, sizeof hlt, size);
	if (what == SAVE || what == RESTORE) {
		for (size_t at = 0; at < used; at += PAGE)
			m.memory[at + 8] = 1;
		file = check(memfd_create("memory", MFD_CLOEXEC), "memfd_create");
		if (what == RESTORE) {
			take(m, &state);
			save(m, file);
			end(m);
		}
	}
	if (what == KICK) {
		printf("%.1f\n", kick(m, rounds));
		return 0;
	}
	uint64_t began = now(CLOCK_THREAD_CPUTIME_ID);
	for (long i = 0; i < rounds; i++) {
		struct kvm_regs regs;

		switch (what) {
		case PORT:
			until(m, KVM_EXIT_IO);
			seen += *((uint8_t *)m.run + m.run->io.data_offset);
			break;
		case PORT_READ:
			until(m, KVM_EXIT_IO);
			*((uint8_t *)m.run + m.run->io.data_offset) = 1;
			break;
		case MEMORY:
			until(m, KVM_EXIT_MMIO);
			seen += m.run->mmio.data[0];
			break;
		case MEMORY_READ:
			until(m, KVM_EXIT_MMIO);
			m.run->mmio.data[0] = 1;
			break;
		case STOP:
			m.run->immediate_exit = 1;
			if (ioctl(m.vcpu, KVM_RUN, 0) != -1 || errno != EINTR)
				return 1;
			m.run->immediate_exit = 0;
			break;
		case REGISTERS:
			check(ioctl(m.vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
			check(ioctl(m.vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
			break;
		case MACHINE:
			m = start(hlt, sizeof hlt, size);
			until(m, KVM_EXIT_HLT);
			end(m);
			break;
		case SAVE:
			take(m, &state);
			save(m, file);
			break;
		case RESTORE:
			m = put(&state, file, size);
			until(m, KVM_EXIT_HLT);
			end(m);
			break;
		}
	}
	printf("%.1f\n", (double)(now(CLOCK_THREAD_CPUTIME_ID) - began) / rounds);
	return 0;
}
