// A pool whose workers spin for a few microseconds before they park: a matrix-vector product of
// 100 us cannot pay 20 us to wake a thread, and an idle program must not burn a core.
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "nibble/core.h"

namespace nibble {
namespace {

constexpr int kSpins = 4000;  // about 20 us of pause instructions

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // waits for the pipeline to drain; yield does nothing on most cores
#endif
}

/// Waits until `value` differs from `last`: spinning first, then in the kernel.
template <class T>
T await_change(const std::atomic<T>& value, T last) {
  for (int i = 0; i < kSpins; ++i) {
    const T now = value.load(std::memory_order_acquire);
    if (now != last) return now;
    relax();
  }
  value.wait(last, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

/// The workers of one process. A forked child finds none of its parent's threads, so the pool
/// makes a fresh Crew there and abandons the parent's, whose threads cannot be joined.
class Crew {
 public:
  explicit Crew(int workers) {
    threads_.reserve(static_cast<size_t>(workers));
    for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
  }

  ~Crew() {
    stop_.store(true, std::memory_order_relaxed);
    announce();
    for (std::thread& thread : threads_) thread.join();
  }

  void run(int64_t n, ThreadPool::Fn fn, void* ctx) {
    fn_ = fn;
    ctx_ = ctx;
    n_ = n;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
    announce();
    drain();
    for (int left = busy_.load(std::memory_order_acquire); left != 0;
         left = await_change(busy_, left)) {
    }
  }

 private:
  void announce() {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  void drain() {
    for (int64_t i = next_.fetch_add(1, std::memory_order_relaxed); i < n_;
         i = next_.fetch_add(1, std::memory_order_relaxed)) {
      fn_(ctx_, i);
    }
  }

  void work() {
    for (int seen = 0;;) {
      // Rounds cannot be skipped: the next one starts only after every worker reported this one.
      await_change(round_, seen);
      ++seen;
      if (stop_.load(std::memory_order_relaxed)) return;
      drain();
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  std::atomic<int> round_{0};
  std::atomic<int> busy_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<bool> stop_{false};
  ThreadPool::Fn fn_ = nullptr;
  void* ctx_ = nullptr;
  int64_t n_ = 0;
};

class SpinPool final : public ThreadPool {
 public:
  explicit SpinPool(int threads) : threads_(threads) {}

  ~SpinPool() override {
    if (process_ != getpid()) abandon();
  }

  int num_threads() const override { return threads_; }

  void parallel_for(int64_t n, Fn fn, void* ctx) override {
    if (threads_ == 1 || n <= 1) {
      for (int64_t i = 0; i < n; ++i) fn(ctx, i);
      return;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const pid_t process = getpid(); crew_ == nullptr || process_ != process) {
      if (crew_ != nullptr) abandon();
      crew_ = std::make_unique<Crew>(threads_ - 1);
      process_ = process;
    }
    crew_->run(n, fn, ctx);
  }

 private:
  // The parent's Crew stays reachable (and unjoined) for the life of the child.
  void abandon() {
    static std::vector<Crew*>* const graveyard = new std::vector<Crew*>;
    if (crew_ != nullptr) graveyard->push_back(crew_.release());
  }

  const int threads_;
  std::mutex mutex_;
  std::unique_ptr<Crew> crew_;
  pid_t process_ = getpid();
};

}  // namespace

std::unique_ptr<ThreadPool> make_thread_pool(int threads) {
  return std::make_unique<SpinPool>(threads > 0 ? threads : Device::this_cpu().threads);
}

}  // namespace nibble
