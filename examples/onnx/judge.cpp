// One picture through a file of `agvas export onnx`, with ONNX Runtime's C++ API. The picture is a binary PPM (P6) of the file's size.
//
//   g++ -std=c++17 -I INCLUDE judge.cpp -L LIB -lonnxruntime -o judge && ./judge lid.onnx part.ppm
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

int main(int, char** arguments) {
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "judge");
  Ort::Session session(env, arguments[1], Ort::SessionOptions{});
  std::vector<int64_t> shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();  // height, width, 3
  std::ifstream file(arguments[2], std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, white = 0;
  file >> kind >> width >> height >> white;
  file.get();
  std::vector<uint8_t> pixels(shape[0] * shape[1] * 3);
  if (kind != "P6" || height != shape[0] || width != shape[1] || !file.read(reinterpret_cast<char*>(pixels.data()), pixels.size()))
    return std::cerr << "a P6 picture of " << shape[1] << "x" << shape[0] << " px is needed\n", 2;
  Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Value image = Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
  const char* inputs[] = {"image"};
  const char* outputs[] = {"score_map", "mask", "score", "verdict"};
  std::vector<Ort::Value> found = session.Run(Ort::RunOptions{}, inputs, &image, 1, outputs, 4);
  const uint8_t* mask = found[1].GetTensorData<uint8_t>();
  const char* verdicts[] = {"PASS", "FAIL", "NO_VERDICT"};
  std::cout << verdicts[*found[3].GetTensorData<int64_t>()] << " " << *found[2].GetTensorData<float>() << " "
            << std::count(mask, mask + shape[0] * shape[1], 255) << " px\n";
}
