// What the commands share: exit codes, how a command is registered, how an error is printed.
#ifndef NIBBLE_FRONTENDS_CLI_CLI_H_
#define NIBBLE_FRONTENDS_CLI_CLI_H_

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "nibble/core.h"

namespace nibble::cli {

/// Exit codes of the program; kExitCodesHelp documents them.
enum class Exit : int {
  kOk = 0,
  kCheckFailed = 1,
  kUsage = 2,
  kUnsupported = 3,
  kCorruptFile = 4,
  kIo = 5,
  kOutOfMemory = 6,
  kCuda = 7,
  kInternal = 70,
  kInterrupted = 130,
};
inline constexpr const char* kExitCodesHelp =
    "Exit codes: 0 ok; 1 a check failed; 2 wrong usage or argument; 3 unsupported; 4 corrupt "
    "file;\n"
    "5 the system refused (missing file, full disk); 6 out of memory; 7 CUDA; 70 internal error;\n"
    "130 interrupted.";

Exit exit_of(Code code);
/// Prints the status as one sentence on stderr; returns its exit code.
Exit fail(const Status& status);
/// A sentence on stderr that does not end the program.
void warn(const std::string& text);

/// What the chosen command will do once all arguments are parsed.
using Action = std::function<Exit()>;

/// Each adds its command to the program; parsing the command's name sets `action`.
void add_quantize(CLI::App& app, Action& action);
void add_convert(CLI::App& app, Action& action);
void add_inspect(CLI::App& app, Action& action);
void add_verify(CLI::App& app, Action& action);
void add_plan(CLI::App& app, Action& action);
void add_kernels(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);
void add_bench(CLI::App& app, Action& action);

/// What a command's help says besides its options.
struct CommandHelp {
  std::string title;    ///< one line, also in the list of commands
  std::string details;  ///< paragraphs below the options
  std::vector<std::string> examples;
};
/// A subcommand; its help ends with the examples and the exit codes.
CLI::App* add_command(CLI::App& app, const std::string& name, const CommandHelp& help);

/// Accepts numbers from `minimum` on, with a short message.
CLI::Validator at_least(double minimum);

/// Ok for "" and for the name of a row of the kernel table.
Status check_kernel_name(const std::string& name);

/// `list` parsed element by element with `parse`; the first error ends it.
template <class Parse>
auto parse_all(const std::vector<std::string>& list, Parse parse)
    -> Result<std::vector<typename std::decay_t<decltype(parse(list[0]).value())>>> {
  std::vector<typename std::decay_t<decltype(parse(list[0]).value())>> values;
  for (const std::string& each : list) {
    auto value = parse(each);
    if (!value.ok()) return std::move(value).status();
    values.push_back(std::move(value).value());
  }
  return values;
}

}  // namespace nibble::cli

#endif  // NIBBLE_FRONTENDS_CLI_CLI_H_
