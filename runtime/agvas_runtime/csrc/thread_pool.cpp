#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <sched.h>
#include <unistd.h>

namespace agvas {
namespace {

struct Batch {
  Batch(const std::function<void(int)>& given, int jobs) : job(given), count(jobs) {}

  const std::function<void(int)>& job;
  int count;
  std::atomic<int> next{0};
  std::mutex mutex;
  std::exception_ptr error;

  void drain() {
    for (int i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      try {
        job(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!error) error = std::current_exception();
        next.store(count);
      }
    }
  }
};

class Pool {
 public:
  explicit Pool(int workers) {
    for (int i = 0; i < workers; ++i) std::thread([this] { work(); }).detach();
    workers_ = workers;
  }

  // False where the pool is busy with another caller's batch.
  bool run(Batch& batch, int helpers) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      batch_ = &batch;
      wanted_ = std::min(helpers, workers_);
    }
    wake_.notify_all();
    batch.drain();
    std::unique_lock<std::mutex> lock(mutex_);
    batch_ = nullptr;
    wanted_ = 0;
    done_.wait(lock, [this] { return active_ == 0; });
    return true;
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++active_;
      Batch* batch = batch_;
      lock.unlock();
      batch->drain();
      lock.lock();
      if (--active_ == 0) done_.notify_all();
    }
  }

  std::mutex busy_, mutex_;
  std::condition_variable wake_, done_;
  Batch* batch_ = nullptr;
  int wanted_ = 0, active_ = 0, workers_ = 0;
};

// Never destroyed: its threads sleep until the process ends, and joining them from a destructor of a shared library can hang.
Pool& pool() {
  static std::mutex mutex;
  static Pool* current = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(mutex);
  if (current == nullptr || owner != getpid()) {  // threads do not survive a fork
    current = new Pool(std::max(0, cores() - 1));
    owner = getpid();
  }
  return *current;
}

}  // namespace

int cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

void parallel_for(int count, int threads, const std::function<void(int)>& job) {
  Batch batch(job, count);
  const int helpers = std::min(threads > 0 ? threads : cores(), count) - 1;
  if (helpers <= 0 || !pool().run(batch, helpers)) batch.drain();
  if (batch.error) std::rethrow_exception(batch.error);
}

}  // namespace agvas
