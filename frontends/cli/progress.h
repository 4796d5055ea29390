// A progress line on stderr: done, rate and time left.
#ifndef NIBBLE_FRONTENDS_CLI_PROGRESS_H_
#define NIBBLE_FRONTENDS_CLI_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

namespace nibble::cli {

/// Shows itself only when stderr is a terminal and the work has taken over a second.
class Progress {
 public:
  /// `unit` with its scale: {"M weights", 1e6}.
  struct Unit {
    std::string name;
    double scale = 1;
  };
  Progress(std::string label, Unit unit, int64_t total);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }

  /// `done` of the total; draws at most ten times a second.
  void update(int64_t done);
  /// Removes the line, so that other output may follow.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  Unit unit_;
  int64_t total_;
  bool enabled_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_draw_ = start_;
};

/// The last part of writing a checkpoint. The writer reports the bytes of layers too; those have a
/// progress line of their own, so this one counts what comes after `begin`.
class CopyProgress {
 public:
  void begin() { active_ = true; }
  void update(int64_t done, int64_t total);  ///< as WriteOptions::progress
  void clear() { bar_.reset(); }

 private:
  bool active_ = false;
  int64_t done_before_ = 0;
  std::unique_ptr<Progress> bar_;
};

/// "5 s", "3 min 20 s", "2 h 5 min"
std::string human_seconds(double seconds);

}  // namespace nibble::cli

#endif  // NIBBLE_FRONTENDS_CLI_PROGRESS_H_
