// Streams: operations in order, each stream's on an OS thread.
//
// Streams that wait for the null stream share one thread with it, which gives the order that CUDA promises for them.
#include <time.h>

#include <cstdio>
#include <cstdlib>

#include "driver.h"

namespace simt {

Executor::~Executor() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

void Executor::add(std::vector<Operation> operations) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        added_ += operations.size();
        for (Operation &operation : operations) queue_.push_back(std::move(operation));
    }
    changed_.notify_all();
}

void Executor::wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t target = added_;
    changed_.wait(lock, [&] { return done_ >= target; });
}

bool Executor::idle() {
    std::lock_guard<std::mutex> lock(mutex_);
    return done_ == added_;
}

void Executor::work() {
    Context &context = driver().context;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        changed_.wait(lock, [&] { return stop_ || !queue_.empty(); });
        if (stop_ && queue_.empty()) return;
        const Operation operation = std::move(queue_.front());
        queue_.pop_front();
        Launch behind = {};
        const bool launches = !operation.work && !queue_.empty() && !queue_.front().work;
        const bool overlap = launches && queue_.front().launch.overlap;
        if (overlap) behind = queue_.front().launch;
        lock.unlock();
        CUresult error = CUDA_SUCCESS;
        if (context.lost.load() == 0 || operation.always)
            error = operation.work ? operation.work() : launch(operation.launch, overlap ? &behind : nullptr);
        else
            early_.reset();
        if (error) context.lose(error, "");
        lock.lock();
        done_++;
        changed_.notify_all();
    }
}

namespace {

void fill(Grid &grid, const Launch &launch) {
    const Settings &settings = driver().settings;
    grid.kernel = launch.function->kernel;
    grid.module = launch.function->module->info;
    grid.module_number = launch.function->module->number;
    grid.module_shared_bytes = launch.function->module->shared_bytes;
    grid.params = launch.params->data();
    grid.grid_size = launch.grid;
    grid.block_size = launch.block;
    grid.shared_bytes = launch.shared_bytes;
    grid.order = settings.order;
    grid.seed = settings.seed;
    grid.patience_seconds = settings.patience_seconds;
    grid.cooperative = launch.cooperative;
    if (grid.cooperative) grid.turns.begin(grid.blocks(), grid.order == Order::reverse ? grid.blocks() - 1 : 0);
}

CUresult outcome(const Grid &grid) {
    if (const CUresult failure = grid.failure.load()) {
        driver().context.lose(failure, grid.message);
        return failure;
    }
    return CUDA_SUCCESS;
}

// Beyond this many blocks it costs too much to hold a whole grid at its beginning.
constexpr unsigned most_blocks_early = 32;

}  // namespace

// A programmatic launch that has begun before the one in front of it ended. All its blocks go as far as they get
// without that one's end, and wait there: the earliest that any of its reads and writes can happen.
struct Early {
    Grid grid;
    Launch launch;  // keeps the parameters
    std::atomic<bool> gate{false};
    std::thread thread;

    Early(const Launch &of, Pool &pool) : launch(of) {
        fill(grid, launch);
        grid.gate = &gate;
        grid.cooperative = true;
        thread = std::thread([this, &pool] { pool.run(grid); });
        while (grid.at_gate.load() < grid.blocks() && !grid.failure.load()) {
            const timespec nap = {0, 20000};
            nanosleep(&nap, nullptr);
        }
    }
    ~Early() {
        if (!thread.joinable()) return;
        int fine = 0;
        grid.failure.compare_exchange_strong(fine, CUDA_ERROR_LAUNCH_FAILED);
        open();
    }
    void open() {
        gate.store(true);
        thread.join();
    }
};

Executor::Executor() : thread_(&Executor::work, this) {}

// Runs a launch, unless it has begun already; the one behind it may begin before it ends.
CUresult Executor::launch(const Launch &launch, const Launch *behind) {
    const std::unique_ptr<Early> begun = std::move(early_);
    if (behind && driver().settings.overlap && behind->grid.x * behind->grid.y * behind->grid.z <= most_blocks_early) {
        early_turn_ ^= 1;
        early_.reset(new Early(*behind, early_pools_[early_turn_]));
        if (early_->grid.failure.load()) return outcome(early_->grid);
    }
    CUresult error = CUDA_SUCCESS;
    if (begun) {
        begun->open();
        error = outcome(begun->grid);
    } else {
        Grid grid;
        fill(grid, launch);
        pool_.run(grid);
        error = outcome(grid);
    }
    if (error) early_.reset();
    return error;
}

Stream *stream_of(void *handle, CUresult *error) {
    Context &context = driver().context;
    // 0 and 1: the legacy null stream; 2: that of the thread, which is the same here.
    if (reinterpret_cast<uintptr_t>(handle) <= 2) return &context.null_stream;
    Stream *const stream = static_cast<Stream *>(handle);
    if (context.streams.count(stream)) return stream;
    *error = CUDA_ERROR_INVALID_HANDLE;
    return nullptr;
}

CUresult submit(Stream *stream, std::vector<Operation> operations) {
    if (stream->capture) {
        if (stream->capture_broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        for (Operation &operation : operations) stream->capture->operations.push_back(std::move(operation));
        return CUDA_SUCCESS;
    }
    (stream->executor ? *stream->executor : *driver().context.executor).add(std::move(operations));
    return CUDA_SUCCESS;
}

CUresult submit(Stream *stream, Operation operation) {
    std::vector<Operation> one;
    one.push_back(std::move(operation));
    return submit(stream, std::move(one));
}

// Called without the driver's lock: others may go on meanwhile.
CUresult synchronize(Stream *stream) {
    Context &context = driver().context;
    if (stream) {
        (stream->executor ? *stream->executor : *context.executor).wait();
    } else {
        context.executor->wait();
        std::vector<Executor *> others;
        {
            std::lock_guard<std::recursive_mutex> lock(driver().mutex);
            for (Stream *one : context.streams)
                if (one->executor) others.push_back(one->executor.get());
        }
        for (Executor *one : others) one->wait();
    }
    std::string how;
    if (context.lost.load() == 0 && context.memory.damaged(how)) {
        fprintf(stderr, "custom_cuda emulator: outside of allocated memory: %s\n", how.c_str());
        context.lose(CUDA_ERROR_ILLEGAL_ADDRESS, how);
    }
    return context.lost.load();
}

bool unsafe_in_capture() {
    bool found = false;
    for (Stream *stream : driver().context.streams) {
        if (!stream->capture || stream->capture_mode == 2) continue;
        stream->capture_broken = true;
        found = true;
    }
    return found;
}

}  // namespace simt
