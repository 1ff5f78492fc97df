// Blocks of a cooperative launch take turns: one runs at a time, and who is next depends on the order of threads alone.
// So a launch with a seed is the same launch every time, however many cores there are and whatever else they do.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace simt {

class Turns {
  public:
    // Nobody has begun; `first` will be.
    void begin(unsigned blocks, unsigned first) {
        places_.clear();
        for (unsigned i = 0; i < blocks; i++) places_.emplace_back(new Place());
        turn_ = first;
    }
    bool on() const { return !places_.empty(); }

    // Come back when it is this block's turn, or the launch has failed.
    void await(unsigned block, const std::atomic<int> &failure) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (turn_ != block && !failure.load())
            // Whoever failed passed the turn on to one block only.
            places_[block]->wake.wait_for(lock, std::chrono::milliseconds(20));
    }

    // Let another block go on: the first from `from` on, in steps of one up or down, that has not left.
    void pass(unsigned from, bool down) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const unsigned count = unsigned(places_.size());
        for (unsigned i = 0; i < count; i++) {
            const unsigned next = (from + (down ? count - i : i)) % count;
            if (places_[next]->left) continue;
            turn_ = next;
            places_[next]->wake.notify_one();
            return;
        }
    }
    void leave(unsigned block) {
        const std::lock_guard<std::mutex> lock(mutex_);
        places_[block]->left = true;
    }

  private:
    struct Place {
        std::condition_variable wake;
        bool left = false;
    };
    std::mutex mutex_;
    std::vector<std::unique_ptr<Place>> places_;
    unsigned turn_ = 0;
};

}  // namespace simt
