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

void Executor::add(Operation operation) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        queue_.push_back(std::move(operation));
        added_++;
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
        Operation operation = std::move(queue_.front());
        queue_.pop_front();
        Operation second;
        unsigned count = 1;
        if (!operation.work && !queue_.empty() && !queue_.front().work && queue_.front().launch.overlap) {
            second = std::move(queue_.front());
            queue_.pop_front();
            count = 2;
        }
        lock.unlock();
        CUresult error = CUDA_SUCCESS;
        if (context.lost.load() == 0 || operation.always) {
            if (operation.work)
                error = operation.work();
            else if (count == 2)
                error = overlapped(operation.launch, second.launch);
            else
                error = launch(operation.launch);
        }
        if (error) context.lose(error, "");
        lock.lock();
        done_ += count;
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
}

CUresult outcome(const Grid &grid) {
    if (const CUresult failure = grid.failure.load()) {
        driver().context.lose(failure, grid.message);
        return failure;
    }
    return CUDA_SUCCESS;
}

// Beyond this many threads it costs too much to hold a whole grid at its beginning.
constexpr unsigned most_blocks_ahead = 32;

}  // namespace

CUresult Executor::launch(const Launch &launch) {
    Grid grid;
    fill(grid, launch);
    pool_.run(grid);
    return outcome(grid);
}

// A programmatic launch may begin before the one in front of it. Here it does so as early as it can: all its blocks go
// as far as they get without waiting for that one, and only then that one begins.
CUresult Executor::overlapped(const Launch &first, const Launch &second) {
    Grid behind;
    fill(behind, second);
    if (!driver().settings.overlap || behind.blocks() > most_blocks_ahead) {
        const CUresult error = launch(first);
        return error ? error : launch(second);
    }
    if (!second_) second_.reset(new Pool());
    std::atomic<bool> gate{false};
    behind.gate = &gate;
    behind.cooperative = true;
    std::thread ahead([&] { second_->run(behind); });
    while (behind.at_gate.load() < behind.blocks() && !behind.failure.load()) {
        const timespec nap = {0, 20000};
        nanosleep(&nap, nullptr);
    }
    CUresult error = behind.failure.load() ? CUDA_SUCCESS : launch(first);
    if (error) behind.failure.store(error);
    gate.store(true);
    ahead.join();
    return error ? error : outcome(behind);
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

CUresult submit(Stream *stream, Operation operation) {
    if (stream->capture) {
        if (stream->capture_broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        stream->capture->operations.push_back(std::move(operation));
        return CUDA_SUCCESS;
    }
    (stream->executor ? *stream->executor : *driver().context.executor).add(std::move(operation));
    return CUDA_SUCCESS;
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
