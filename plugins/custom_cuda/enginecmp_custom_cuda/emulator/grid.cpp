#include "grid.h"

#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace simt {

Describe describe_address = nullptr;

namespace {

struct sigaction before[65];

void pass_on(int number, siginfo_t *info, void *context) {
    const struct sigaction &old = before[number];
    if (old.sa_flags & SA_SIGINFO) {
        old.sa_sigaction(number, info, context);
    } else if (old.sa_handler == SIG_DFL || old.sa_handler == SIG_IGN) {
        signal(number, SIG_DFL);  // returning repeats the fault
    } else {
        old.sa_handler(number);
    }
}

// What CUDA calls an illegal or misaligned address, or a fault of the stack, is a signal here.
void on_fault(int number, siginfo_t *info, void *context) {
    Block *const block = running_block;
    if (!block || !current) {
        pass_on(number, info, context);
        return;
    }
    const uint3 thread = current->index, index = block->index;
    const int stack = block->stacks.owner(info->si_addr);
    if (stack >= 0)
        block->grid->fail(719, "block (%u,%u,%u), thread %d: its stack of %zu bytes is too small", index.x, index.y,
                          index.z, stack, fiber_stack_bytes);
    else if (number == SIGFPE || number == SIGILL)
        block->grid->fail(719, "block (%u,%u,%u), thread %u: signal %d", index.x, index.y, index.z, thread.x, number);
    else
        // The machine names no address when an aligned access of 16 bytes or more met a misaligned one.
        if (number == SIGBUS || info->si_code == SI_KERNEL)
            block->grid->fail(716, "block (%u,%u,%u), thread %u: misaligned address", index.x, index.y, index.z,
                              thread.x);
        else
            block->grid->fail(700, "block (%u,%u,%u), thread %u: illegal address %p%s", index.x, index.y, index.z,
                              thread.x, info->si_addr,
                              describe_address ? describe_address(info->si_addr).c_str() : "");
    siglongjmp(block->recover, 1);
}

}  // namespace

void catch_faults() {
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock(mutex);
    for (int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) {
        struct sigaction now;
        sigaction(number, nullptr, &now);
        if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_fault) continue;
        struct sigaction ours;
        memset(&ours, 0, sizeof ours);
        ours.sa_sigaction = on_fault;
        ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigemptyset(&ours.sa_mask);
        before[number] = now;
        sigaction(number, &ours, nullptr);
    }
}

void alternate_stack() {
    static thread_local std::unique_ptr<char[]> memory;
    if (memory) return;
    constexpr size_t bytes = 64 * 1024;
    memory.reset(new char[bytes]);
    stack_t stack;
    memset(&stack, 0, sizeof stack);
    stack.ss_sp = memory.get();
    stack.ss_size = bytes;
    sigaltstack(&stack, nullptr);
}

static unsigned cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return unsigned(CPU_COUNT(&set));
    return 1;
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread &thread : threads_) thread.join();
}

void Pool::blocks(Grid &grid, Block &block) {
    const unsigned count = grid.blocks();
    alternate_stack();
    for (;;) {
        const unsigned number = next_.fetch_add(1);
        if (number >= count || grid.failure.load()) return;
        // The order of blocks follows the order of threads.
        try {
            block.run(grid, grid.order == Order::reverse ? count - 1 - number : number);
        } catch (const std::bad_alloc &) {
            grid.fail(719, "no memory for the stacks of a block's threads");
        }
    }
}

void Pool::work(unsigned rank) {
    const std::unique_ptr<Block> block(new Block());
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        wake_.wait(lock, [&] { return stop_ || (turn_ != seen && rank < wanted_); });
        if (stop_) return;
        seen = turn_;
        Grid &grid = *grid_;
        lock.unlock();
        blocks(grid, *block);
        lock.lock();
        if (--busy_ == 0) done_.notify_all();
    }
}

void Pool::run(Grid &grid) {
    catch_faults();
    const unsigned count = grid.blocks();
    const unsigned workers = grid.cooperative ? count : std::min(count, cores());
    if (!own_) own_.reset(new Block());
    next_ = 0;
    if (workers > 1) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            grid_ = &grid;
            wanted_ = busy_ = workers - 1;
            turn_++;
            while (threads_.size() < workers - 1) threads_.emplace_back(&Pool::work, this, unsigned(threads_.size()));
        }
        wake_.notify_all();
    }
    blocks(grid, *own_);
    if (workers > 1) {
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [&] { return busy_ == 0; });
        wanted_ = 0;
    }
}

}  // namespace simt
