// nibble: the command line. Every command is one file beside this one.
#include <cstdio>
#include <exception>
#include <new>

#include "cli.h"

namespace nibble::cli {
namespace {

int run(int argc, char** argv) {
  CLI::App app(
      "Matrix multiplication with 4-bit weights: quantize checkpoints, look into them,\n"
      "and see which kernels this machine runs and how fast.");
  app.name("nibble");
  app.set_version_flag("--version", std::string("nibble ") + version());
  app.require_subcommand(1);
  app.footer(std::string("`nibble COMMAND --help` shows a command's options and examples.\n\n") +
             kExitCodesHelp);
  Action action;
  add_quantize(app, action);
  add_convert(app, action);
  add_inspect(app, action);
  add_verify(app, action);
  add_plan(app, action);
  add_kernels(app, action);
  add_doctor(app, action);
  add_bench(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {  // --help, --version
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    const CLI::App* command = &app;
    if (!app.get_subcommands().empty()) command = app.get_subcommands().front();
    if (command == &app && argc > 1 && argv[1][0] != '-') {
      std::fprintf(stderr, "nibble: '%s' is no command (see `nibble --help`)\n", argv[1]);
      return static_cast<int>(Exit::kUsage);
    }
    const std::string name = command == &app ? "nibble" : "nibble " + command->get_name();
    std::fprintf(stderr, "nibble: %s (see `%s --help`)\n", e.what(), name.c_str());
    return static_cast<int>(Exit::kUsage);
  }
  const Exit code = action();
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    return static_cast<int>(fail(io_error("writing to standard output failed")));
  }
  return static_cast<int>(code);
}

}  // namespace
}  // namespace nibble::cli

int main(int argc, char** argv) {
  using nibble::cli::Exit;
  try {
    return nibble::cli::run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("nibble: out of memory\n", stderr);
    return static_cast<int>(Exit::kOutOfMemory);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "nibble: internal error: %s\n", e.what());
    return static_cast<int>(Exit::kInternal);
  }
}
