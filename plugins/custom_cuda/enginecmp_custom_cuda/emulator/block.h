// A block while it runs: its threads as fibers of one OS thread, and who waits for what.
#pragma once

#include <atomic>
#include <csetjmp>
#include <cstdarg>
#include <mutex>
#include <string>
#include <vector>

#include "fiber.h"
#include "threads.h"
#include "turns.h"

namespace simt {

constexpr unsigned most_threads = 1024;
constexpr unsigned most_barriers = 16;

enum class Order { forward, reverse, shuffled };

// One launch while it runs; shared by the OS threads that run its blocks.
struct Grid {
    const KernelInfo *kernel = nullptr;
    const ModuleInfo *module = nullptr;
    uint64_t module_number = 0;  // never used twice
    size_t module_shared_bytes = 0;
    const void *params = nullptr;
    dim3 grid_size, block_size;
    unsigned shared_bytes = 0;
    Order order = Order::forward;
    uint64_t seed = 0;
    double patience_seconds = 10;
    bool cooperative = false;

    Turns turns;  // of a cooperative launch's blocks

    std::atomic<int> failure{0};        // a CUresult
    std::atomic<uint64_t> changes{0};   // counts what can let a polling thread go on
    std::atomic<unsigned> live{0};      // blocks that run now
    std::atomic<unsigned> polling{0};   // of them, those whose threads all poll or wait
    std::atomic<bool> *gate = nullptr;  // programmatic launch: open when the launch before is done
    std::atomic<unsigned> at_gate{0};   // blocks whose threads can go no further before it opens, or that ended
    std::mutex message_mutex;
    std::string message;

    void fail(int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
    unsigned blocks() const { return grid_size.x * grid_size.y * grid_size.z; }
};

struct Copy {
    void *to;
    const void *from;
    unsigned bytes, valid_bytes;
    uint64_t *barrier;
};

struct Fiber : Thread {
    Registers context;
    const Site *waits_at;      // while it waits
    const char *waits_in;
    std::vector<Copy> copies;      // cp.async, not yet arrived
    std::vector<unsigned> groups;  // sizes of committed groups, oldest first
    unsigned uncommitted;
};

struct Warp {
    void *arguments[32];
    unsigned masks[32];
    Resolve resolve[32];
    unsigned lanes, waiting, exited;
};

struct ThreadSet {
    uint64_t words[most_threads / 64];
    void add(unsigned i) { words[i / 64] |= uint64_t(1) << i % 64; }
    void remove(unsigned i) { words[i / 64] &= ~(uint64_t(1) << i % 64); }
};

struct NamedBarrier {
    ThreadSet waiting;
    unsigned arrived, expected;
};

// What an OS thread needs to run blocks, one after the other.
struct Block {
    Grid *grid;
    uint3 index;
    unsigned place;  // in the grid
    unsigned count;  // threads
    unsigned words;  // of a ThreadSet in use
    unsigned exited;
    bool counted_polling, counted_gate;
    bool unfenced;  // an mbarrier was made that bulk copies do not know of yet
    bool something_ran;  // since the last time that all ready threads were polling
    uint64_t random;
    uint64_t seen_changes;
    double polling_since;
    unsigned idle_rounds;
    ThreadSet ready, polling, gated;
    NamedBarrier barriers[most_barriers];  // 0: __syncthreads
    std::vector<Warp> warps;
    std::vector<Fiber> fibers;
    std::vector<Copy> bulk;  // bulk copies, not yet arrived
    Stacks stacks;
    Registers host;
    char *shared = nullptr;  // dynamic shared memory of this block
    char *shared_mapping = nullptr;
    size_t shared_mapping_bytes = 0;
    sigjmp_buf recover;

    ~Block();
    void run(Grid &of, unsigned number);

    // Of the running fiber:
    Fiber &fiber() { return *static_cast<Fiber *>(current); }
    unsigned number(const Fiber &of) const { return unsigned(&of - fibers.data()); }
    void give_way();       // its state is set: go on with another thread, or come back
    void release(ThreadSet &of);
    void settle(Warp &warp);
    void settle_barrier(unsigned id);
    void leave();          // the fiber has ended
    void abandon();        // to the OS thread: the launch has failed

  private:
    void prepare_shared();
    void check_shared();
    int pick(const ThreadSet &from);
    bool all_poll();       // false: the launch is over
    void let_others();     // in a cooperative launch: come back when it is this block's turn again
    void dead_end();
    std::string who_waits() const;
};

extern __thread Block *running_block __attribute__((tls_model("initial-exec")));  // while this OS thread runs one

// Faults of kernels end the launch instead of the process.
void catch_faults();
void alternate_stack();  // once per OS thread that runs blocks
using Describe = std::string (*)(const void *address);
extern Describe describe_address;  // where an address lies in device memory

}  // namespace simt
