# Test executables. Every GoogleTest case is one ctest test, labelled with its executable.

include(GoogleTest)
set(NIBBLE_TEST_DATA_DIR ${PROJECT_SOURCE_DIR}/tests/data)

# nibble_test(<name> SOURCES <files> [PUBLIC_ONLY] [LIBS <targets>])
# PUBLIC_ONLY: the test sees include/nibble alone, as a user does.
# A test executable whose name begins with bench_ measures time, so its cases run alone.
function(nibble_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "PUBLIC_ONLY" "" "SOURCES;LIBS")
  if(NOT arg_SOURCES)
    return()
  endif()
  add_executable(${name} ${arg_SOURCES})
  nibble_compile_options(${name})
  target_link_libraries(${name} PRIVATE nibble::nibble ${arg_LIBS} GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE NIBBLE_TEST_DATA_DIR="${NIBBLE_TEST_DATA_DIR}")
  if(NOT arg_PUBLIC_ONLY)
    nibble_stage_includes(${name})
    nibble_cuda_options(${name})
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${name} PRIVATE nlohmann_json::nlohmann_json)
  endif()
  set(alone OFF)
  if(name MATCHES "^bench_")
    set(alone ON)
  endif()
  gtest_discover_tests(
    ${name}
    TEST_PREFIX ${name}.
    PROPERTIES LABELS ${name} TIMEOUT 600 RUN_SERIAL ${alone}
    DISCOVERY_MODE PRE_TEST
    DISCOVERY_TIMEOUT 120)
endfunction()

# <stage>_test from src/<stage>/**/*_test.cc. Files below cuda/ need CUDA, except *_host_test.cc.
function(nibble_stage_tests)
  get_property(stages GLOBAL PROPERTY NIBBLE_STAGES)
  foreach(stage IN LISTS stages)
    file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${stage}/*_test.cc)
    if(NOT NIBBLE_HAVE_CUDA)
      set(host_sources ${sources})
      list(FILTER host_sources INCLUDE REGEX "/cuda/.*_host_test\\.cc$")
      list(FILTER sources EXCLUDE REGEX "/cuda/")
      list(APPEND sources ${host_sources})
    endif()
    nibble_test(${stage}_test SOURCES ${sources})
    nibble_stage_fuzzers(${stage})
  endforeach()
  if(NIBBLE_FUZZ) # for tools/fuzz.sh
    get_property(fuzzers GLOBAL PROPERTY NIBBLE_FUZZERS)
    add_custom_target(fuzzers DEPENDS ${fuzzers})
    list(JOIN fuzzers "\n" lines)
    file(WRITE ${PROJECT_BINARY_DIR}/fuzzers.txt "${lines}\n")
  endif()
endfunction()

# Each src/<stage>/**/<name>_fuzz.cc becomes <name>_fuzz (libFuzzer, with NIBBLE_FUZZ) or
# <name>_replay (any compiler); both run the corpus tests/data/fuzz/<name>_fuzz/ in ctest.
function(nibble_stage_fuzzers stage)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${stage}/*_fuzz.cc)
  # The stage and what it may see: kernels compiled for a fuzzer would take minutes.
  set(objects nibble_core nibble_${stage})
  list(REMOVE_DUPLICATES objects)
  foreach(source IN LISTS sources)
    cmake_path(GET source STEM fuzzer)
    set(corpus ${NIBBLE_TEST_DATA_DIR}/fuzz/${fuzzer})
    if(NIBBLE_FUZZ)
      set(target ${fuzzer})
      add_executable(${target} ${source})
      target_link_options(${target} PRIVATE -fsanitize=fuzzer)
      set(replay $<TARGET_FILE:${target}> -runs=0 ${corpus})
      set_property(GLOBAL APPEND PROPERTY NIBBLE_FUZZERS ${target})
    else()
      string(REGEX REPLACE "_fuzz$" "_replay" target ${fuzzer})
      add_executable(${target} ${source} ${PROJECT_SOURCE_DIR}/tests/fuzz/replay_main.cc)
      set(replay $<TARGET_FILE:${target}> ${corpus})
    endif()
    nibble_compile_options(${target})
    nibble_stage_includes(${target})
    target_link_libraries(${target} PRIVATE ${objects} nlohmann_json::nlohmann_json Threads::Threads)
    add_test(NAME fuzz.${fuzzer} COMMAND ${replay})
    set_tests_properties(fuzz.${fuzzer} PROPERTIES LABELS fuzz TIMEOUT 300)
  endforeach()
endfunction()
