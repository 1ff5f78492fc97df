// Runs all blocks of a launch on OS threads.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "block.h"

namespace simt {

// OS threads that wait for launches. An ordinary launch takes at most as many as there are cores; a cooperative one
// as many as it has blocks, since its blocks wait for each other.
class Pool {
  public:
    ~Pool();
    void run(Grid &grid);

  private:
    void work(unsigned rank);
    void blocks(Grid &grid, Block &block);

    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    Grid *grid_ = nullptr;
    unsigned wanted_ = 0, busy_ = 0;
    uint64_t turn_ = 0;
    bool stop_ = false;
    std::atomic<unsigned> next_{0};
    std::unique_ptr<Block> own_;
};

}  // namespace simt
