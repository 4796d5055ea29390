# Third-party packages: the system's where there is one, else a pinned download.
#   core library: nlohmann-json, protozero (header only, inside checkpoint)
#   command line: + CLI11, fmt
#   tests: GoogleTest
# None of them is needed by programs that link the installed library.

include(FetchContent)
find_package(Threads REQUIRED)

# Header-only packages of the build machine serve any target: the cross compiler finds them where
# its own compiler does. GoogleTest is built from the sources that Debian's package brings.
if(CMAKE_CROSSCOMPILING)
  function(nibble_header_only target header)
    include(CheckIncludeFileCXX)
    string(MAKE_C_IDENTIFIER "NIBBLE_FOUND_${header}" found)
    check_include_file_cxx(${header} ${found})
    if(${found} AND NOT TARGET ${target})
      add_library(${target} INTERFACE IMPORTED GLOBAL)
      set_property(TARGET ${target} PROPERTY INTERFACE_COMPILE_DEFINITIONS ${ARGN})
    endif()
  endfunction()
  nibble_header_only(nlohmann_json::nlohmann_json nlohmann/json.hpp)
  nibble_header_only(fmt::fmt fmt/format.h FMT_HEADER_ONLY=1)
  nibble_header_only(CLI11::CLI11 CLI/CLI.hpp)
  if(EXISTS /usr/src/googletest/CMakeLists.txt)
    set(FETCHCONTENT_SOURCE_DIR_GTEST /usr/src/googletest)
  endif()
endif()

# Makes `target` exist, from the system's `package` or from `repository` at `commit`.
function(nibble_dependency package target repository commit)
  if(NOT TARGET ${target})
    find_package(${package} QUIET GLOBAL)
  endif()
  if(NOT TARGET ${target})
    message(STATUS "${package}: not installed, fetching ${repository} ${commit}")
    FetchContent_Declare(${package} GIT_REPOSITORY ${repository} GIT_TAG ${commit} SYSTEM)
    FetchContent_MakeAvailable(${package})
  endif()
  if(NOT TARGET ${target})
    message(FATAL_ERROR "${package} gave no target ${target}")
  endif()
endfunction()

set(JSON_BuildTests OFF)
set(JSON_Install OFF)
nibble_dependency(nlohmann_json nlohmann_json::nlohmann_json https://github.com/nlohmann/json.git
                  bc889afb4c5bf1c0d8ee29ef35eaaf4c8bef8a5d) # 3.11.2

# Headers without a CMake package: protozero::protozero is made here.
find_path(NIBBLE_PROTOZERO_INCLUDE_DIR protozero/pbf_reader.hpp)
mark_as_advanced(NIBBLE_PROTOZERO_INCLUDE_DIR)
if(NOT NIBBLE_PROTOZERO_INCLUDE_DIR)
  message(FATAL_ERROR "protozero's headers, with which ONNX models are read, were not found: install "
                      "libprotozero-dev (tools/setup build does), or pass their folder with "
                      "-DNIBBLE_PROTOZERO_INCLUDE_DIR=<folder of protozero/pbf_reader.hpp>")
endif()
# Seen through a folder of their own: all of /usr/include would come before the headers of a cross
# compiler.
set(protozero_view ${PROJECT_BINARY_DIR}/protozero_include)
file(MAKE_DIRECTORY ${protozero_view})
file(CREATE_LINK ${NIBBLE_PROTOZERO_INCLUDE_DIR}/protozero ${protozero_view}/protozero SYMBOLIC)
add_library(protozero::protozero INTERFACE IMPORTED)
target_include_directories(protozero::protozero INTERFACE ${protozero_view})

if(NIBBLE_CLI OR NIBBLE_DEV)
  set(FMT_INSTALL OFF)
  nibble_dependency(fmt fmt::fmt https://github.com/fmtlib/fmt.git
                    a33701196adfad74917046096bf5a2aa0ab0bb50) # 9.1.0
  nibble_dependency(CLI11 CLI11::CLI11 https://github.com/CLIUtils/CLI11.git
                    70f8072f9dd2292fd0b9f9e5f58e279f60483ed3) # 2.1.2
endif()
if(NIBBLE_DEV)
  set(INSTALL_GTEST OFF)
  set(BUILD_GMOCK OFF)
  nibble_dependency(GTest GTest::gtest_main https://github.com/google/googletest.git
                    58d77fa8070e8cec2dc1ed015d66b454c8d78850) # 1.12.1
endif()
