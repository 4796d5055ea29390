# Third-party packages: the system's where there is one, else a pinned download.
#   core library: nlohmann-json (header only, inside checkpoint)   command line: + CLI11, fmt
#   tests: GoogleTest
# None of them is needed by programs that link the installed library.

include(FetchContent)
find_package(Threads REQUIRED)

# Makes `target` exist, from the system's `package` or from `repository` at `tag`.
function(nibble_dependency package target repository tag)
  find_package(${package} QUIET GLOBAL)
  if(NOT TARGET ${target})
    message(STATUS "${package}: not installed, fetching ${tag}")
    FetchContent_Declare(${package} GIT_REPOSITORY ${repository} GIT_TAG ${tag} GIT_SHALLOW ON)
    FetchContent_MakeAvailable(${package})
  endif()
  if(NOT TARGET ${target})
    message(FATAL_ERROR "${package} gave no target ${target}")
  endif()
endfunction()

set(JSON_BuildTests OFF)
set(JSON_Install OFF)
nibble_dependency(nlohmann_json nlohmann_json::nlohmann_json https://github.com/nlohmann/json.git
                  v3.11.2)
if(NIBBLE_CLI OR NIBBLE_DEV)
  set(FMT_INSTALL OFF)
  nibble_dependency(fmt fmt::fmt https://github.com/fmtlib/fmt.git 9.1.0)
  nibble_dependency(CLI11 CLI11::CLI11 https://github.com/CLIUtils/CLI11.git v2.1.2)
endif()
if(NIBBLE_DEV)
  set(INSTALL_GTEST OFF)
  nibble_dependency(GTest GTest::gtest_main https://github.com/google/googletest.git release-1.12.1)
endif()
