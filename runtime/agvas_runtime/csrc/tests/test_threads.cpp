#include <atomic>
#include <numeric>
#include <thread>

#include "check.h"
#include "thread_pool.h"

using namespace agvas;

TEST(every_job_is_done_once) {
  for (int threads : {0, 1, 2, 7}) {
    std::vector<int> done(1000);
    parallel_for(1000, threads, [&](int i) { ++done[i]; });
    for (int count : done) CHECK(count == 1);
  }
  parallel_for(0, 0, [](int) { CHECK(false); });
}

TEST(an_exception_of_a_job_reaches_the_caller_and_the_pool_goes_on) {
  bool caught = false;
  try {
    parallel_for(100, 0, [](int i) { CHECK(i != 50); });
  } catch (const std::runtime_error&) {
    caught = true;
  }
  CHECK(caught);
  std::atomic<int> sum{0};
  parallel_for(10, 0, [&](int i) { sum += i; });
  CHECK(sum == 45);
}

TEST(callers_at_once_do_not_wait_for_each_other_for_ever) {
  std::atomic<int> sum{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) parallel_for(8, 0, [&](int) { ++sum; });
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(sum == 4 * 200 * 8);
}

TEST(a_job_may_call_again) {
  std::atomic<int> sum{0};
  parallel_for(4, 0, [&](int) { parallel_for(5, 0, [&](int) { ++sum; }); });
  CHECK(sum == 20);
}
