// Ctrl-C between two layers instead of in the middle of one.
#ifndef NIBBLE_FRONTENDS_CLI_INTERRUPT_H_
#define NIBBLE_FRONTENDS_CLI_INTERRUPT_H_

namespace nibble::cli {

/// From here on the first SIGINT, SIGTERM or SIGHUP is only noted, so that the command ends between
/// two layers and removes its temporary directory; a second one ends the process at once.
void catch_interrupts();
bool interrupted();

}  // namespace nibble::cli

#endif  // NIBBLE_FRONTENDS_CLI_INTERRUPT_H_
