// A test is a function that returns or throws; CHECK throws with file, line and what did not hold.
//
//     TEST(name) { CHECK(1 + 1 == 2); }
//
// The program runs the tests that it is named, or all; --list prints their names, for ctest.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace check {

std::vector<std::pair<std::string, void (*)()>>& tests();

struct Entry {
  Entry(const char* name, void (*run)()) { tests().emplace_back(name, run); }
};

}  // namespace check

#define TEST(name)                                     \
  static void test_##name();                           \
  static const check::Entry entry_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition)                                                                                             \
  do {                                                                                                               \
    if (!(condition)) throw std::runtime_error(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #condition); \
  } while (false)
