// Calls about streams, events and graphs.
#include <time.h>

#include "driver.h"

using simt::driver;
using simt::Event;
using simt::Graph;
using simt::Operation;
using simt::Stream;

namespace {

double clock_seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

enum : unsigned { non_blocking = 1, event_disable_timing = 2 };

// Captured streams whose work joins another's: their graph is the same object.
std::map<Event *, std::shared_ptr<Graph>> captured_events;

}  // namespace

API cuStreamCreate(void **handle, unsigned flags) {
    ENTER(device_context);
    Stream *const stream = new Stream();
    stream->flags = flags;
    if (flags & non_blocking) stream->executor.reset(new simt::Executor());
    driver().context.streams.insert(stream);
    *handle = stream;
    return CUDA_SUCCESS;
}

API cuStreamCreateWithPriority(void **handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }

API cuStreamDestroy_v2(void *handle) {
    ENTER(device_context);
    Stream *const stream = static_cast<Stream *>(handle);
    if (!driver().context.streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;
    driver().context.streams.erase(stream);
    lock.unlock();
    delete stream;  // waits for what is in it
    return CUDA_SUCCESS;
}

API cuStreamSynchronize(void *handle) {
    ENTER(device_context);
    CUresult error = CUDA_SUCCESS;
    Stream *const stream = simt::stream_of(handle, &error);
    if (!stream) return error;
    if (stream->capture) {
        stream->capture_broken = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    lock.unlock();
    return simt::synchronize(stream);
}

API cuStreamQuery(void *handle) {
    ENTER(device_context);
    CUresult error = CUDA_SUCCESS;
    Stream *const stream = simt::stream_of(handle, &error);
    if (!stream) return error;
    simt::Executor &executor = stream->executor ? *stream->executor : *driver().context.executor;
    return executor.idle() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

// ---- capture

API cuStreamBeginCapture_v2(void *handle, int mode) {
    ENTER(device_context);
    CUresult error = CUDA_SUCCESS;
    Stream *const stream = simt::stream_of(handle, &error);
    if (!stream) return error;
    if (stream == &driver().context.null_stream) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    stream->capture = std::make_shared<Graph>();
    stream->capture_mode = mode;
    stream->capture_broken = false;
    return CUDA_SUCCESS;
}

API cuStreamEndCapture(void *handle, void **graph) {
    ENTER(device_context);
    CUresult error = CUDA_SUCCESS;
    Stream *const stream = simt::stream_of(handle, &error);
    if (!stream) return error;
    if (!stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    const std::shared_ptr<Graph> captured = stream->capture;
    const bool broken = stream->capture_broken;
    for (Stream *one : driver().context.streams)
        if (one->capture == captured) one->capture.reset();
    for (auto at = captured_events.begin(); at != captured_events.end();)
        at = at->second == captured ? captured_events.erase(at) : std::next(at);
    *graph = nullptr;
    if (broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    Graph *const made = new Graph(*captured);
    driver().context.graphs.insert(made);
    *graph = made;
    return CUDA_SUCCESS;
}

API cuStreamIsCapturing(void *handle, int *status) {
    ENTER(device_context);
    CUresult error = CUDA_SUCCESS;
    Stream *const stream = simt::stream_of(handle, &error);
    if (stream) *status = !stream->capture ? 0 : stream->capture_broken ? 2 : 1;
    return error;
}

// ---- graphs

API cuGraphGetNodes(void *handle, void **nodes, size_t *count) {
    ENTER(device_context);
    Graph *const graph = static_cast<Graph *>(handle);
    if (!driver().context.graphs.count(graph)) return CUDA_ERROR_INVALID_HANDLE;
    if (nodes)
        for (size_t i = 0; i < *count; i++)
            nodes[i] = i < graph->operations.size() ? &graph->operations[i] : nullptr;
    if (!nodes || *count > graph->operations.size()) *count = graph->operations.size();
    return CUDA_SUCCESS;
}

API cuGraphInstantiateWithFlags(void **executable, void *handle, unsigned long long) {
    ENTER(device_context);
    Graph *const graph = static_cast<Graph *>(handle);
    if (!driver().context.graphs.count(graph)) return CUDA_ERROR_INVALID_HANDLE;
    Graph *const made = new Graph(*graph);
    driver().context.executables.insert(made);
    *executable = made;
    return CUDA_SUCCESS;
}

API cuGraphUpload(void *, void *) {
    ENTER(device_context);
    return CUDA_SUCCESS;
}

API cuGraphLaunch(void *handle, void *stream_handle) {
    ENTER(device_context);
    Graph *const graph = static_cast<Graph *>(handle);
    if (!driver().context.executables.count(graph)) return CUDA_ERROR_INVALID_HANDLE;
    CUresult error = CUDA_SUCCESS;
    Stream *const stream = simt::stream_of(stream_handle, &error);
    if (!stream) return error;
    // The first launch of a graph does not overlap what was in the stream before.
    std::vector<Operation> operations = graph->operations;
    if (!operations.empty()) operations[0].launch.overlap = false;
    return simt::submit(stream, std::move(operations));
}

API cuGraphDestroy(void *handle) {
    ENTER(device_context);
    Graph *const graph = static_cast<Graph *>(handle);
    if (!driver().context.graphs.erase(graph)) return CUDA_ERROR_INVALID_HANDLE;
    delete graph;
    return CUDA_SUCCESS;
}

API cuGraphExecDestroy(void *handle) {
    ENTER(device_context);
    Graph *const graph = static_cast<Graph *>(handle);
    if (!driver().context.executables.erase(graph)) return CUDA_ERROR_INVALID_HANDLE;
    delete graph;
    return CUDA_SUCCESS;
}

// ---- events

API cuEventCreate(void **handle, unsigned flags) {
    ENTER(device_context);
    Event *const event = new Event();
    event->timed = !(flags & event_disable_timing);
    driver().context.events.insert(event);
    *handle = event;
    return CUDA_SUCCESS;
}

static CUresult event_of(void *handle, Event **event) {
    *event = static_cast<Event *>(handle);
    return driver().context.events.count(*event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

API cuEventRecord(void *handle, void *stream_handle) {
    ENTER(device_context);
    Event *event;
    CUresult error = event_of(handle, &event);
    if (error) return error;
    Stream *const stream = simt::stream_of(stream_handle, &error);
    if (!stream) return error;
    const bool captured = stream->capture != nullptr;
    if (captured) captured_events[event] = stream->capture;
    simt::Context &context = driver().context;
    uint64_t turn = 0;
    if (!captured) {
        std::lock_guard<std::mutex> guard(context.event_mutex);
        turn = ++event->wanted;
    }
    Operation operation;
    operation.always = true;
    operation.work = [event, turn, &context]() -> CUresult {
        std::lock_guard<std::mutex> guard(context.event_mutex);
        static double latest = 0;  // two events are never at the same time
        latest = std::max(latest + 1e-6, clock_seconds());
        event->seconds = latest;
        event->done = std::max(event->done + (turn == 0), turn);
        if (turn == 0) event->wanted = std::max(event->wanted, event->done);
        context.event_changed.notify_all();
        return CUDA_SUCCESS;
    };
    return simt::submit(stream, std::move(operation));
}

API cuStreamWaitEvent(void *stream_handle, void *handle, unsigned) {
    ENTER(device_context);
    Event *event;
    CUresult error = event_of(handle, &event);
    if (error) return error;
    Stream *const stream = simt::stream_of(stream_handle, &error);
    if (!stream) return error;
    const auto captured = captured_events.find(event);
    if (captured != captured_events.end()) {  // joins the capture: the graph keeps the order of the calls
        if (!stream->capture) stream->capture = captured->second;
        return CUDA_SUCCESS;
    }
    simt::Context &context = driver().context;
    uint64_t turn;
    {
        std::lock_guard<std::mutex> guard(context.event_mutex);
        turn = event->wanted;
    }
    Operation operation;
    operation.always = true;
    operation.work = [event, turn, &context]() -> CUresult {
        std::unique_lock<std::mutex> guard(context.event_mutex);
        context.event_changed.wait(guard, [&] { return event->done >= turn; });
        return CUDA_SUCCESS;
    };
    return simt::submit(stream, std::move(operation));
}

API cuEventSynchronize(void *handle) {
    ENTER(device_context);
    Event *event;
    if (const CUresult error = event_of(handle, &event)) return error;
    simt::Context &context = driver().context;
    lock.unlock();
    {
        std::unique_lock<std::mutex> guard(context.event_mutex);
        const uint64_t turn = event->wanted;
        context.event_changed.wait(guard, [&] { return event->done >= turn; });
    }
    return context.lost.load();
}

API cuEventQuery(void *handle) {
    ENTER(device_context);
    Event *event;
    if (const CUresult error = event_of(handle, &event)) return error;
    std::lock_guard<std::mutex> guard(driver().context.event_mutex);
    return event->done >= event->wanted ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

API cuEventElapsedTime_v2(float *milliseconds, void *first_handle, void *second_handle) {
    ENTER(device_context);
    Event *first, *second;
    if (const CUresult error = event_of(first_handle, &first)) return error;
    if (const CUresult error = event_of(second_handle, &second)) return error;
    std::lock_guard<std::mutex> guard(driver().context.event_mutex);
    if (!first->timed || !second->timed || first->wanted == 0 || second->wanted == 0) return CUDA_ERROR_INVALID_HANDLE;
    if (first->done < first->wanted || second->done < second->wanted) return CUDA_ERROR_NOT_READY;
    *milliseconds = float(1e3 * (second->seconds - first->seconds));
    return CUDA_SUCCESS;
}

API cuEventDestroy_v2(void *handle) {
    ENTER(device_context);
    Event *event;
    if (const CUresult error = event_of(handle, &event)) return error;
    lock.unlock();
    simt::synchronize(nullptr);
    lock.lock();
    captured_events.erase(event);
    driver().context.events.erase(event);
    delete event;
    return CUDA_SUCCESS;
}
