# The helpers with which every folder declares its library and its tests.

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  # Paths are hashed relative to the checkout, so that every clone of it shares the cache.
  set(launcher ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros ${CCACHE_PROGRAM})
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
endif()

add_library(tessera_options INTERFACE)
target_include_directories(tessera_options INTERFACE ${PROJECT_SOURCE_DIR}/src)
target_compile_options(tessera_options INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -fno-math-errno -ffp-contract=off
  # g++ 12 reports these inside fmt and the standard library where nothing is wrong.
  $<$<CXX_COMPILER_ID:GNU>:-Wno-stringop-overflow -Wno-stringop-overread -Wno-array-bounds
    -Wno-maybe-uninitialized -Wno-restrict -Wno-free-nonheap-object>)
if(TESSERA_WERROR)
  target_compile_options(tessera_options INTERFACE -Werror)
endif()
if(TESSERA_SANITIZE)
  target_compile_options(tessera_options INTERFACE
    -fsanitize=${TESSERA_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(tessera_options INTERFACE -fsanitize=${TESSERA_SANITIZE})
endif()

# Large headers of libraries, parsed once for all sources: much of a cold build. Files still include
# what they use.
# tessera_headers(target [HEADERS ...] [DEPS ...]) makes an object library that carries them.
function(tessera_headers target)
  cmake_parse_arguments(ARG "" "" "HEADERS;DEPS" ${ARGN})
  set(source ${CMAKE_BINARY_DIR}/${target}.cc)
  file(GENERATE OUTPUT ${source} CONTENT "// Carries precompiled headers.\n")
  add_library(${target} OBJECT ${source})
  target_link_libraries(${target}
    PRIVATE tessera_options fmt::fmt nlohmann_json::nlohmann_json ${ARG_DEPS})
  target_precompile_headers(${target} PRIVATE
    <algorithm> <filesystem> <fmt/format.h> <functional> <map> <memory> <nlohmann/json.hpp> <string>
    <vector> ${ARG_HEADERS})
endfunction()

# tessera_library(name SOURCES a.cc b.cc DEPS tessera_base fmt::fmt)
# declares the static library tessera_<name>. With TESSERA_UNITY eight files are compiled as one.
function(tessera_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(tessera_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(tessera_${name} PUBLIC tessera_options ${ARG_DEPS})
  target_precompile_headers(tessera_${name} REUSE_FROM tessera_library_headers)
  set_target_properties(tessera_${name} PROPERTIES
    UNITY_BUILD ${TESSERA_UNITY} UNITY_BUILD_BATCH_SIZE 8)
endfunction()

# tessera_test(name SOURCES a_test.cc DEPS tessera_x [LABEL unit|slow|peer] [TIMEOUT seconds])
# declares one GoogleTest program. Label `unit` (the default) also runs under the sanitizers.
function(tessera_test name)
  if(NOT TESSERA_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(NOT ARG_LABEL)
    set(ARG_LABEL unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE tessera_options ${ARG_DEPS} GTest::gtest GTest::gtest_main)
  target_precompile_headers(${name} REUSE_FROM tessera_test_headers)
  # Only where it is used: an absolute path in the command would keep clones from sharing a cache.
  foreach(source ${ARG_SOURCES})
    if(IS_ABSOLUTE ${source})
      set(path ${source})
    else()
      set(path ${CMAKE_CURRENT_SOURCE_DIR}/${source})
    endif()
    if(EXISTS ${path})
      file(STRINGS ${path} uses REGEX "TESSERA_SOURCE_DIR" LIMIT_COUNT 1)
      if(uses)
        set_property(SOURCE ${source} APPEND PROPERTY
          COMPILE_DEFINITIONS TESSERA_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
      endif()
    endif()
  endforeach()
  if(ARG_LABEL STREQUAL "unit")
    if(NOT TARGET tessera_unit_tests)
      add_custom_target(tessera_unit_tests)
    endif()
    add_dependencies(tessera_unit_tests ${name})
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT})
endfunction()
