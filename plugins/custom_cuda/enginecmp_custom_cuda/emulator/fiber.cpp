#include "fiber.h"

#include <sys/mman.h>

#include <atomic>
#include <new>

#if defined(__x86_64__)
asm(".text\n.globl simt_switch\n.hidden simt_switch\n.type simt_switch,@function\n"
    "simt_switch:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
    "    movq %rsp, (%rdi)\n    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    ret\n.size simt_switch,.-simt_switch\n");
#elif defined(__aarch64__)
asm(".text\n.globl simt_switch\n.hidden simt_switch\n.type simt_switch,%function\n"
    "simt_switch:\n"
    "    sub sp, sp, #160\n"
    "    stp x19, x20, [sp]\n    stp x21, x22, [sp, #16]\n    stp x23, x24, [sp, #32]\n"
    "    stp x25, x26, [sp, #48]\n    stp x27, x28, [sp, #64]\n    stp x29, x30, [sp, #80]\n"
    "    stp d8, d9, [sp, #96]\n    stp d10, d11, [sp, #112]\n    stp d12, d13, [sp, #128]\n"
    "    stp d14, d15, [sp, #144]\n"
    "    mov x9, sp\n    str x9, [x0]\n    mov sp, x1\n"
    "    ldp x19, x20, [sp]\n    ldp x21, x22, [sp, #16]\n    ldp x23, x24, [sp, #32]\n"
    "    ldp x25, x26, [sp, #48]\n    ldp x27, x28, [sp, #64]\n    ldp x29, x30, [sp, #80]\n"
    "    ldp d8, d9, [sp, #96]\n    ldp d10, d11, [sp, #112]\n    ldp d12, d13, [sp, #128]\n"
    "    ldp d14, d15, [sp, #144]\n"
    "    add sp, sp, #160\n    ret\n.size simt_switch,.-simt_switch\n");
#endif

namespace simt {

namespace {
constexpr size_t stride = fiber_stack_bytes + page;
// Every guard page splits a mapping, and the kernel bounds their number (65530 by default); the canary is always there.
constexpr unsigned most_guards = 12000;
std::atomic<unsigned> guards{0};
}  // namespace

Stacks::~Stacks() {
    if (memory_) munmap(memory_, count_ * stride);
    if (guarded_) guards -= count_;
}

void Stacks::reserve(unsigned count) {
    if (count <= count_) return;
    if (memory_) munmap(memory_, count_ * stride);
    if (guarded_) guards -= count_;
    void *mapped = mmap(nullptr, count * stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                        -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char *>(mapped);
    count_ = count;
    guarded_ = guards.fetch_add(count) + count <= most_guards;
    if (!guarded_) guards -= count;
    for (unsigned i = 0; i < count; i++) {
        if (guarded_) mprotect(memory_ + i * stride, page, PROT_NONE);
        *reinterpret_cast<uint64_t *>(bottom(i)) = fiber_canary;
    }
}

char *Stacks::bottom(unsigned index) const { return memory_ + index * stride + page; }

// Tops are staggered by cache lines: otherwise all stacks would compete for the same few sets of the cache.
char *Stacks::top(unsigned index) const { return memory_ + (index + 1) * stride - (index % 48) * 192; }

int Stacks::owner(const void *address) const {
    const char *at = static_cast<const char *>(address);
    if (!memory_ || at < memory_ || at >= memory_ + count_ * stride) return -1;
    const size_t offset = size_t(at - memory_);
    return offset % stride < page ? int(offset / stride) : -1;
}

}  // namespace simt
