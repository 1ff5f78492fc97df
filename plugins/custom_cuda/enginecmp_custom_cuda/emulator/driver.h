// The stand-in driver's state: one device, one context, its memory, modules, streams and graphs.
//
// Types and numbers are those of the CUDA driver API (names and values: cuda.h, CUDA 13); a handle is a pointer to one
// of the objects below.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "grid.h"

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;

enum : CUresult {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE = 720,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_ILLEGAL_STATE = 401,
};

namespace simt {

// Shared memory, in bytes, of a multiprocessor and of a block that asked for it: as on compute capability 9.0.
constexpr size_t multiprocessor_shared = 228 * 1024, optin_shared = 227 * 1024;

// ---- memory.cpp

struct Allocation {
    char *mapping;
    size_t mapping_bytes;
    char *address;
    size_t bytes;
    bool pinned;  // of the host
};

class Memory {
  public:
    CUresult allocate(size_t bytes, bool pinned, char **address);
    CUresult release(const void *address, bool pinned);
    void clear();
    // The allocation that holds all of [address, address + bytes), device or pinned.
    bool holds(const void *address, size_t bytes) const;
    bool is_pinned(const void *address) const;
    bool damaged(std::string &how) const;  // something was written outside an allocation
    std::string describe(const void *address) const;
    size_t used() const { return used_; }
    size_t limit = size_t(8) << 30;

  private:
    const Allocation *find(const void *address) const;
    mutable std::mutex mutex_;
    std::map<uintptr_t, Allocation> allocations_;
    size_t used_ = 0;
};

// ---- modules.cpp

struct Module;

struct Function {
    const KernelInfo *kernel;
    Module *module;
    size_t static_shared;
    size_t dynamic_shared = 48 * 1024;  // most that a launch may ask for
};

struct Module {
    void *library = nullptr;
    int file = -1;
    uint64_t number = 0;
    const ModuleInfo *info = nullptr;
    size_t shared_bytes = 0;  // of all kernels' static shared variables together
    std::vector<std::pair<std::string, size_t>> shared_symbols;
    std::map<std::string, std::unique_ptr<Function>> functions;
    std::vector<std::vector<Site *>> sites;  // one place may be compiled several times
    ~Module();
};

CUresult load_module(const void *image, std::unique_ptr<Module> &module);
CUresult find_function(Module &module, const char *name, Function **function);

// ---- streams.cpp

struct Launch {
    Function *function;
    dim3 grid, block;
    unsigned shared_bytes;
    bool cooperative, overlap;
    std::shared_ptr<std::vector<ulonglong2>> params;  // 16-byte aligned copy
};

struct Event {
    bool timed = true;
    uint64_t wanted = 0, done = 0;  // records asked for, records passed
    double seconds = 0;
};

// One thing to do on the device, in order. `work` is null for a launch.
struct Operation {
    std::function<CUresult()> work;
    Launch launch;
    bool always = false;  // also after the context is lost: marks that others wait for
};

struct Graph {
    std::vector<Operation> operations;
};

struct Early;

// Runs operations one after the other on an OS thread of its own.
class Executor {
  public:
    Executor();
    ~Executor();
    void add(std::vector<Operation> operations);  // all at once: what overlaps must be seen together
    void wait();  // for all that was added before
    bool idle();

  private:
    void work();
    CUresult launch(const Launch &launch, const Launch *behind);

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Operation> queue_;
    uint64_t added_ = 0, done_ = 0;
    bool stop_ = false;
    Pool pool_, early_pools_[2];
    unsigned early_turn_ = 0;
    std::unique_ptr<Early> early_;
    std::thread thread_;  // the last member: it uses the others
};

struct Stream {
    unsigned flags = 0;
    std::unique_ptr<Executor> executor;  // of a non-blocking stream; the others share the context's
    std::shared_ptr<Graph> capture;
    int capture_mode = 0;
    bool capture_broken = false;
};

// ---- the context

struct Settings {
    unsigned multiprocessors = 4;
    Order order = Order::forward;
    uint64_t seed = 0;
    double patience_seconds = 10;
    bool overlap = true;  // let programmatic launches begin early
};

struct Fault {
    CUresult code;
    int after, times;
};

struct Context {
    Memory memory;
    std::unique_ptr<Executor> executor;
    std::set<Module *> modules;
    std::set<Stream *> streams;
    std::set<Event *> events;
    std::set<Graph *> graphs, executables;
    std::atomic<CUresult> lost{0};
    std::string why_lost;
    bool alive = false;
    unsigned users = 0;
    Stream null_stream;
    std::mutex event_mutex;
    std::condition_variable event_changed;
    void open();
    void close();
    void lose(CUresult code, const std::string &why);
};

struct Driver {
    std::recursive_mutex mutex;
    bool initialised = false;
    Context context;
    Settings settings;
    std::map<std::string, Fault> faults;
};

Driver &driver();
extern thread_local bool context_is_current;

// Begin of every API call: injected faults, initialisation, context, lost device.
enum Needs { nothing, initialised, device_context };
CUresult enter(const char *name, Needs needs);
bool unsafe_in_capture();  // some capture forbids calls that may wait; breaks that capture
CUresult submit(Stream *stream, std::vector<Operation> operations);
CUresult submit(Stream *stream, Operation operation);
CUresult synchronize(Stream *stream);
Stream *stream_of(void *handle, CUresult *error);
bool verbose();

}  // namespace simt

#define API extern "C" SIMT_EXPORT CUresult
#define ENTER(needs)                                                             \
    std::unique_lock<std::recursive_mutex> lock(simt::driver().mutex);           \
    if (const CUresult error_ = simt::enter(__func__, simt::needs)) return error_
