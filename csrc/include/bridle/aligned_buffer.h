// Bytes that begin at a cache line.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace bridle {

class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;

  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes)
      : data_(static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{kAlignment}))), bytes_(bytes) {}

  std::byte* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

  // Room for that many bytes; what was there is lost where it has to grow.
  void reserve(size_t bytes) {
    if (bytes > bytes_) *this = AlignedBuffer(bytes);
  }

 private:
  struct Free {
    void operator()(std::byte* data) const { ::operator delete[](data, std::align_val_t{kAlignment}); }
  };

  std::unique_ptr<std::byte[], Free> data_;
  size_t bytes_ = 0;
};

}  // namespace bridle
