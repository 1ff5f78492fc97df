// Fibers: stacks of their own, and a switch that keeps what a called function must keep.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(SIMT_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define SIMT_UCONTEXT
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

constexpr size_t fiber_stack_bytes = 64 * 1024;
constexpr size_t page = 4096;              // of memory protection
constexpr unsigned char red_zone = 0xfd;  // what lies around memory that kernels may write
constexpr uint64_t fiber_canary = 0x5afe57acc0ffee11u;

#if !defined(SIMT_UCONTEXT)
using Registers = void *;  // the stack pointer; the registers lie on the stack

extern "C" void simt_switch(void **save, void *load);

// The context that begins `entry` on a fresh stack. `top` is 16-byte aligned.
static inline void context_make(Registers &context, char *, char *top, void (*entry)()) {
#if defined(__x86_64__)
    void **frame = reinterpret_cast<void **>(top) - 8;  // r15 r14 r13 r12 rbx rbp, entry, its return address
    for (int i = 0; i < 8; i++) frame[i] = nullptr;
    frame[6] = reinterpret_cast<void *>(entry);
#else
    void **frame = reinterpret_cast<void **>(top) - 20;  // x19..x28, x29, x30, d8..d15
    for (int i = 0; i < 20; i++) frame[i] = nullptr;
    frame[11] = reinterpret_cast<void *>(entry);
#endif
    context = frame;
}
static inline void context_switch(Registers &save, Registers &load) { simt_switch(&save, load); }

#else
using Registers = ucontext_t;

static inline void context_make(Registers &context, char *bottom, char *top, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = bottom;
    context.uc_stack.ss_size = size_t(top - bottom);
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
static inline void context_switch(Registers &save, Registers &load) { swapcontext(&save, &load); }
#endif

// The stacks of one OS thread's fibers: one mapping, each stack with a page below it that faults.
class Stacks {
  public:
    ~Stacks();
    void reserve(unsigned count);                // more stacks; earlier ones may move, so only between blocks
    char *bottom(unsigned index) const;          // lowest usable byte; holds the canary
    char *top(unsigned index) const;
    int owner(const void *address) const;        // which stack's guard page holds the address, or -1
    bool intact(unsigned index) const { return *reinterpret_cast<uint64_t *>(bottom(index)) == fiber_canary; }

  private:
    char *memory_ = nullptr;
    unsigned count_ = 0;
    bool guarded_ = false;
};

}  // namespace simt
