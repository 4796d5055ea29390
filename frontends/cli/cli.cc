#include "cli.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "nibble/plan.h"

namespace nibble::cli {

Exit exit_of(Code code) {
  switch (code) {
    case Code::kOk:
      return Exit::kOk;
    case Code::kInvalidArgument:
      return Exit::kUsage;
    case Code::kUnsupported:
      return Exit::kUnsupported;
    case Code::kCorruptFile:
      return Exit::kCorruptFile;
    case Code::kIo:
      return Exit::kIo;
    case Code::kOutOfMemory:
      return Exit::kOutOfMemory;
    case Code::kCuda:
      return Exit::kCuda;
    case Code::kInternal:
      return Exit::kInternal;
  }
  return Exit::kInternal;
}

Exit fail(const Status& status) {
  // A message may quote a file name or a tensor name; control characters in it must not reach the
  // terminal.
  std::string message = status.message();
  for (char& c : message) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  std::fprintf(stderr, "nibble: %s\n", message.c_str());
  return exit_of(status.code());
}

void warn(const std::string& text) { std::fprintf(stderr, "nibble: warning: %s\n", text.c_str()); }

CLI::App* add_command(CLI::App& app, const std::string& name, const CommandHelp& help) {
  CLI::App* command = app.add_subcommand(name, help.title);
  std::string footer = help.details + "\n\nExamples:\n";
  for (const std::string& example : help.examples) footer += "  " + example + "\n";
  command->footer(footer + "\n" + kExitCodesHelp);
  return command;
}

CLI::Validator at_least(double minimum) {
  const std::string limit = fmt::format("{:g}", minimum);
  return CLI::Validator(
      [minimum, limit](const std::string& text) {
        double value = 0;
        const bool good = CLI::detail::lexical_cast(text, value) && value >= minimum;
        return good ? std::string() : text + " is no number from " + limit + " on";
      },
      ">=" + limit);
}

Status check_kernel_name(const std::string& name) {
  const auto rows = kernels();
  if (name.empty() || std::any_of(rows.begin(), rows.end(),
                                  [&](const KernelRow& row) { return name == row.name; })) {
    return ok_status();
  }
  return invalid_argument("--kernel '" + name + "' is no row; `nibble kernels` lists them");
}

}  // namespace nibble::cli
