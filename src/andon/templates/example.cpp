// Inspects pictures with graph.onnx: a line with verdict, score and p-value for each.
//
//   g++ -std=c++17 -O2 example.cpp -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o example
//   ./example graph.onnx picture.ppm ...
//
// It reads binary PPM (RGB) and PGM (gray) files. In your program, give `inspect` the samples of the camera: rows of
// RGB or gray, as spec.json says under "input". OpenCV gives BGR: convert with cv::cvtColor and COLOR_BGR2RGB.
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct Picture {
  std::vector<int64_t> shape;  // height, width, channels
  bool wide;                   // 16 bits a sample
  std::vector<char> samples;
};

struct Result {
  const char* verdict;
  float score;
  double p_value;
};

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

Picture read_picture(const std::string& path) {
  const std::string data = read(path);
  long width = 0, height = 0, maximum = 0;
  char letter = 0, space = 0;
  int start = 0;
  if (std::sscanf(data.c_str(), "P%c %ld %ld %ld%c%n", &letter, &width, &height, &maximum, &space, &start) != 5 ||
      (letter != '5' && letter != '6') || (maximum != 255 && maximum != 65535) || width < 1 || height < 1) {
    throw std::runtime_error("not a binary PPM or PGM file of 8 or 16 bits");
  }
  Picture picture{{height, width, letter == '6' ? 3 : 1}, maximum > 255, {data.begin() + start, data.end()}};
  if (picture.samples.size() != size_t(height) * width * picture.shape[2] * (picture.wide ? 2 : 1)) {
    throw std::runtime_error("truncated, or longer than its header says");
  }
  for (size_t i = 0; picture.wide && i < picture.samples.size(); i += 2) {
    std::swap(picture.samples[i], picture.samples[i + 1]);  // the file is big-endian, the machine little-endian
  }
  return picture;
}

Result inspect(Ort::Session& session, Picture& picture) {
  static const std::array verdicts{"PASS", "REVIEW", "REJECT"};
  static const std::array inputs{"picture"};
  static const std::array outputs{"score", "p_value", "verdict"};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto type = picture.wide ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  const auto tensor = Ort::Value::CreateTensor(memory, picture.samples.data(), picture.samples.size(),
                                               picture.shape.data(), picture.shape.size(), type);
  const auto found = session.Run(Ort::RunOptions{nullptr}, inputs.data(), &tensor, 1, outputs.data(), outputs.size());
  return {verdicts.at(*found[2].GetTensorData<int32_t>()), *found[0].GetTensorData<float>(),
          *found[1].GetTensorData<double>()};
}

int main(int count, char** arguments) {
  if (count < 3) {
    std::fprintf(stderr, "usage: %s graph.onnx picture.ppm ...\n", arguments[0]);
    return 2;
  }
  int failed = 0;
  const char* path = arguments[1];
  try {
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
    const std::string graph = read(path);
    Ort::Session session(env, graph.data(), graph.size(), Ort::SessionOptions());
    for (int i = 2; i < count; ++i) {
      path = arguments[i];
      try {
        Picture picture = read_picture(path);
        const Result result = inspect(session, picture);  // a picture of another size or depth is an exception
        std::printf("%s %.9g %.9g %s\n", result.verdict, result.score, result.p_value, path);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "could not be inspected: %s: %s\n", path, error.what());
        failed = 1;
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", path, error.what());
    return 2;
  }
  return failed;
}
