#include "ops/default_pool.h"

namespace nibble {

ThreadPool& default_pool() {
  static const std::unique_ptr<ThreadPool> pool = make_thread_pool();
  return *pool;
}

}  // namespace nibble
