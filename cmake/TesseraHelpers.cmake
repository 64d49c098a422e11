# The helpers with which every folder declares its library and its tests.

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  # Paths are hashed relative to the checkout, so that every clone of it shares the cache.
  set(launcher ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
      ${CCACHE_PROGRAM})
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
endif()

add_library(tessera_options INTERFACE)
target_include_directories(tessera_options INTERFACE ${PROJECT_SOURCE_DIR}/src)
target_compile_options(tessera_options INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -fno-math-errno -ffp-contract=off
  # g++ 12 reports these inside fmt and the standard library where nothing is wrong.
  $<$<CXX_COMPILER_ID:GNU>:-Wno-stringop-overflow -Wno-maybe-uninitialized -Wno-restrict>)
if(TESSERA_WERROR)
  target_compile_options(tessera_options INTERFACE -Werror)
endif()
if(TESSERA_SANITIZE)
  target_compile_options(tessera_options INTERFACE
    -fsanitize=${TESSERA_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(tessera_options INTERFACE -fsanitize=${TESSERA_SANITIZE})
endif()

# tessera_library(name SOURCES a.cc b.cc DEPS tessera_base fmt::fmt)
# declares the static library tessera_<name>.
function(tessera_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(tessera_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(tessera_${name} PUBLIC tessera_options ${ARG_DEPS})
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
