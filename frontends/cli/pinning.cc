#include "pinning.h"

#include <fmt/format.h>

#include <atomic>
#include <vector>

#ifdef __linux__
#include <dirent.h>
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#endif

namespace nibble::cli {

#ifdef __linux__
namespace {

std::vector<int> allowed_cores() {
  std::vector<int> cores;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

// Thread ids of this process, the calling thread first.
std::vector<pid_t> own_threads() {
  const pid_t self = gettid();
  std::vector<pid_t> threads = {self};
  DIR* tasks = opendir("/proc/self/task");
  if (tasks == nullptr) return threads;
  while (const dirent* entry = readdir(tasks)) {
    const auto id = static_cast<pid_t>(std::strtol(entry->d_name, nullptr, 10));
    if (id > 0 && id != self) threads.push_back(id);
  }
  closedir(tasks);
  return threads;
}

}  // namespace

Status pin_threads(ThreadPool* pool) {
  const std::vector<int> cores = allowed_cores();
  const auto wanted = static_cast<size_t>(pool->num_threads());
  if (wanted > cores.size()) {
    return invalid_argument(fmt::format(
        "{} threads on {} cores: a measurement needs a core for each", wanted, cores.size()));
  }
  // A pool may start its threads at the first call.
  std::atomic<int> calls = 0;
  pool->for_each(pool->num_threads(), [&](int64_t) { ++calls; });
  const std::vector<pid_t> threads = own_threads();
  if (threads.size() != wanted) {
    return unsupported(fmt::format("the pool has {} threads, the process {}; they cannot be pinned",
                                   wanted, threads.size()));
  }
  for (size_t i = 0; i < threads.size(); ++i) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cores[i], &set);
    if (sched_setaffinity(threads[i], sizeof(set), &set) != 0) {
      return io_error(
          fmt::format("binding a thread to core {} failed: {}", cores[i], std::strerror(errno)));
    }
  }
  return ok_status();
}
#else
Status pin_threads(ThreadPool*) { return unsupported("threads can be pinned on Linux only"); }
#endif

}  // namespace nibble::cli
