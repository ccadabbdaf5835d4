#include <cstdio>
#include <cstring>
#include <exception>

#include "check.h"

std::vector<std::pair<std::string, void (*)()>>& check::tests() {
  static std::vector<std::pair<std::string, void (*)()>> all;
  return all;
}

int main(int argc, char** argv) {
  int failed = 0, run = 0;
  for (const auto& [name, test] : check::tests()) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted = wanted || name == argv[i];
    if (!wanted) continue;
    ++run;
    try {
      test();
      std::printf("ok      %s\n", name.c_str());
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED  %s\n        %s\n", name.c_str(), error.what());
    }
  }
  return failed > 0 || run == 0;
}
