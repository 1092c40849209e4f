/* What raw ioctls cost: the floor that the wrapper is measured against. Prints nanoseconds a round. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int kvm;

static int check(int ret, const char *what)
{
	if (ret < 0) {
		perror(what);
		exit(1);
	}
	return ret;
}

struct machine {
	int vm, vcpu;
	void *memory;
	struct kvm_run *run;
	size_t run_size;
};

static struct machine start(const uint8_t *code, size_t len)
{
	struct machine m;
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rsp = 0x1000, .rflags = 2 };
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[80];
	} cpuid;

	m.vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	m.memory = mmap(0, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy((char *)m.memory + 0x1000, code, len);
	struct kvm_userspace_memory_region region = {
		.memory_size = 0x10000, .userspace_addr = (uintptr_t)m.memory
	};
	check(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	m.vcpu = check(ioctl(m.vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	m.run_size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	m.run = mmap(0, m.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
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
	munmap(m.memory, 0x10000);
}

static void until(struct machine m, unsigned reason)
{
	check(ioctl(m.vcpu, KVM_RUN, 0), "KVM_RUN");
	if (m.run->exit_reason != reason) {
		fprintf(stderr, "exit %u\n", m.run->exit_reason);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	static const uint8_t out[] = { 0xe6, 0x80, 0xeb, 0xfc };
	static const uint8_t mmio[] = { 0xb8, 0x00, 0x90, 0x8e, 0xd8, 0xa2, 0x00, 0x00, 0xeb, 0xfb };
	static const uint8_t hlt[] = { 0xf4 };
	const char *what = argc > 1 ? argv[1] : "";
	long rounds = argc > 2 ? atol(argv[2]) : 0;
	volatile unsigned seen = 0;
	struct timespec a, b;
	struct machine m = { 0 };

	kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int port = !strcmp(what, "port"), memory = !strcmp(what, "memory");
	int registers = !strcmp(what, "registers"), machine = !strcmp(what, "machine");
	if (rounds < 1 || !(port || memory || registers || machine)) {
		fprintf(stderr, "usage: kvm port|memory|registers|machine ROUNDS\n");
		return 2;
	}
	if (!machine)
		m = port ? start(out, sizeof out) : memory ? start(mmio, sizeof mmio) : start(hlt, sizeof hlt);
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (long i = 0; i < rounds; i++) {
		if (port) {
			until(m, KVM_EXIT_IO);
			seen += *((uint8_t *)m.run + m.run->io.data_offset);
		} else if (memory) {
			until(m, KVM_EXIT_MMIO);
			seen += m.run->mmio.data[0];
		} else if (registers) {
			struct kvm_regs regs;
			check(ioctl(m.vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
			check(ioctl(m.vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
		} else {
			struct machine one = start(hlt, sizeof hlt);
			until(one, KVM_EXIT_HLT);
			end(one);
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &b);
	printf("%.1f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / rounds);
	return 0;
}
