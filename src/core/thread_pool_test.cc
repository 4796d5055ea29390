#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "nibble/core.h"

namespace nibble {
namespace {

TEST(ThreadPoolTest, EveryIndexRunsOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    const auto pool = make_thread_pool(threads);
    EXPECT_EQ(pool->num_threads(), threads);
    for (const int64_t n : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> counts(static_cast<size_t>(n));
      pool->for_each(n, [&](int64_t i) { counts[static_cast<size_t>(i)]++; });
      for (const auto& count : counts) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPoolTest, WorkIsDoneWhenTheCallReturns) {
  const auto pool = make_thread_pool(4);
  std::vector<int64_t> values(512);
  for (int64_t round = 1; round <= 2000; ++round) {
    pool->for_each(8, [&](int64_t i) {
      for (int64_t j = 64 * i; j < 64 * (i + 1); ++j) values[static_cast<size_t>(j)] += round;
    });
    ASSERT_EQ(values[static_cast<size_t>(round % 512)], round * (round + 1) / 2);
  }
}

TEST(ThreadPoolTest, CallsFromSeveralThreadsTakeTurns) {
  const auto pool = make_thread_pool(3);
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) pool->for_each(10, [&](int64_t i) { sum += i; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum.load(), 4 * 200 * 45);
}

TEST(ThreadPoolTest, ParkedWorkersWakeUp) {
  const auto pool = make_thread_pool(2);
  std::atomic<int> done{0};
  for (int i = 0; i < 5; ++i) {
    pool->for_each(2, [&](int64_t) { ++done; });
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(done.load(), 10);
}

TEST(ThreadPoolTest, AForkedChildStartsItsOwnWorkers) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer does not follow threads made after a fork";
#endif
  const auto pool = make_thread_pool(3);
  std::atomic<int> count{0};
  pool->for_each(6, [&](int64_t) { ++count; });
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> mine{0};
    pool->for_each(6, [&](int64_t) { ++mine; });
    _exit(mine.load() == 6 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  pool->for_each(6, [&](int64_t) { ++count; });
  EXPECT_EQ(count.load(), 12);
}

}  // namespace
}  // namespace nibble
