// One picture through a file of `agvas export onnx` or `agvas export openvino`, with OpenVINO's C++ API. The picture is a binary PPM
// (P6) of the file's size. The headers and libraries are in the Python package: openvino/include, openvino/libs.
//
//   g++ -std=c++17 -I INCLUDE judge_openvino.cpp LIBS/libopenvino.so.* -o judge && ./judge lid.xml part.ppm
#include <algorithm>
#include <fstream>
#include <iostream>
#include <openvino/openvino.hpp>

int main(int, char** arguments) {
  ov::Core core;
  // In float32: a CPU with AMX would compute in bfloat16 by default.
  ov::CompiledModel model = core.compile_model(arguments[1], "CPU", ov::hint::inference_precision(ov::element::f32));
  ov::Shape shape = model.input("image").get_shape();  // height, width, 3
  ov::Tensor image(ov::element::u8, shape);
  std::ifstream file(arguments[2], std::ios::binary);
  std::string kind;
  size_t width = 0, height = 0, white = 0;
  file >> kind >> width >> height >> white;
  file.get();
  if (kind != "P6" || height != shape[0] || width != shape[1] || !file.read(static_cast<char*>(image.data()), image.get_byte_size()))
    return std::cerr << "a P6 picture of " << shape[1] << "x" << shape[0] << " px is needed\n", 2;
  ov::InferRequest request = model.create_infer_request();
  request.set_tensor("image", image);
  request.infer();
  const uint8_t* mask = request.get_tensor("mask").data<uint8_t>();
  const char* verdicts[] = {"PASS", "FAIL", "NO_VERDICT"};
  std::cout << verdicts[*request.get_tensor("verdict").data<int64_t>()] << " " << *request.get_tensor("score").data<float>() << " "
            << std::count(mask, mask + shape[0] * shape[1], 255) << " px\n";
}
