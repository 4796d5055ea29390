#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace nibble::cli {
namespace {

constexpr double kQuietSeconds = 1.0;
constexpr double kSecondsBetweenDraws = 0.1;
constexpr int kBarWidth = 28;

}  // namespace

std::string human_seconds(double seconds) {
  const auto whole = static_cast<int64_t>(std::max(0.0, seconds) + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

Progress::Progress(std::string label, Unit unit, int64_t total)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      enabled_(isatty(STDERR_FILENO) == 1 && total > 0) {}

void Progress::update(int64_t done) {
  if (!enabled_) return;
  const Clock::time_point now = Clock::now();
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double since_draw = std::chrono::duration<double>(now - last_draw_).count();
  if (elapsed < kQuietSeconds || (drawn_ && since_draw < kSecondsBetweenDraws)) return;
  const double share =
      std::clamp(static_cast<double>(done) / static_cast<double>(total_), 0.0, 1.0);
  const int filled = static_cast<int>(share * kBarWidth);
  const double rate = static_cast<double>(done) / elapsed;
  const std::string left =
      rate > 0 ? human_seconds(static_cast<double>(total_ - done) / rate) + " left" : "";
  const std::string line = fmt::format("\r\x1b[K{} [{}{}] {:3.0f} %  {:.3g} {}/s  {}", label_,
                                       std::string(static_cast<size_t>(filled), '#'),
                                       std::string(static_cast<size_t>(kBarWidth - filled), '.'),
                                       100 * share, rate / unit_.scale, unit_.name, left);
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  drawn_ = true;
  last_draw_ = now;
}

void CopyProgress::update(int64_t done, int64_t total) {
  if (!active_) {
    done_before_ = done;
    return;
  }
  if (bar_ == nullptr) {
    bar_ = std::make_unique<Progress>("copying the rest", Progress::Unit{"MB", 1e6},
                                      total - done_before_);
  }
  bar_->update(done - done_before_);
}

void Progress::clear() {
  if (!drawn_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace nibble::cli
