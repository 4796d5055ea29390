#include "interrupt.h"

#include <csignal>

namespace nibble::cli {
namespace {

volatile std::sig_atomic_t noted = 0;

void on_signal(int) { noted = 1; }

}  // namespace

void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGHUP, &action, nullptr);
}

bool interrupted() { return noted != 0; }

}  // namespace nibble::cli
