// One call of a launcher, described by a folder: numbers and buffers in `case.txt`, a line each,
//
//     number NAME VALUE          an integer or a real number
//     buffer NAME SHIFT          NAME.bin is its content; SHIFT: bytes that it lies off 64-byte
//     alignment alias NAME OTHER           the same memory as OTHER
//
// After the call each buffer is written to NAME.out. A buffer that is not named is a null pointer.
// Buffers are allocated to the byte, so that AddressSanitizer sees what is read or written past
// them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

class Case {
 public:
  explicit Case(const std::string& folder) : folder_(folder) {
    std::ifstream file(folder + "/case.txt");
    std::string kind, name, value;
    while (file >> kind >> name >> value) {
      if (kind == "number") numbers_[name] = std::stod(value);
      if (kind == "buffer") buffers_[name] = read(name, std::stoul(value));
      if (kind == "alias") aliases_[name] = value;
    }
    if (numbers_.empty()) throw std::runtime_error("no numbers in " + folder + "/case.txt");
  }

  ~Case() {
    for (auto& [name, buffer] : buffers_) std::free(buffer.memory);
  }

  double number(const std::string& name) const { return numbers_.at(name); }
  int64_t whole(const std::string& name) const { return static_cast<int64_t>(number(name)); }

  void* buffer(const std::string& name) const {
    const auto alias = aliases_.find(name);
    const auto found = buffers_.find(alias == aliases_.end() ? name : alias->second);
    return found == buffers_.end() ? nullptr : found->second.memory + found->second.shift;
  }

  void write_back() const {
    for (const auto& [name, buffer] : buffers_) {
      std::ofstream(folder_ + "/" + name + ".out", std::ios::binary)
          .write(reinterpret_cast<const char*>(buffer.memory) + buffer.shift, buffer.size);
    }
  }

 private:
  struct Buffer {
    unsigned char* memory;
    size_t shift, size;
  };

  Buffer read(const std::string& name, size_t shift) const {
    std::ifstream file(folder_ + "/" + name + ".bin", std::ios::binary);
    if (!file) throw std::runtime_error("no " + folder_ + "/" + name + ".bin");
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, shift + bytes.size()) != 0) throw std::bad_alloc();
    Buffer buffer{static_cast<unsigned char*>(memory), shift, bytes.size()};
    if (!bytes.empty()) std::memcpy(buffer.memory + shift, bytes.data(), bytes.size());
    return buffer;
  }

  std::string folder_;
  std::map<std::string, double> numbers_;
  std::map<std::string, Buffer> buffers_;
  std::map<std::string, std::string> aliases_;
};
