// Files of `snnp export --format lammps`: a line of numbers, a header to read, and the packed model as the kernel takes it.
#pragma once
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

namespace snnp_lammps {

// Memory for a packed model, which must start at a multiple of 64.
struct Aligned {
  static constexpr std::align_val_t kAlignment{64};
  void operator()(char *memory) const { ::operator delete[](memory, kAlignment); }
};

struct Model {
  std::unique_ptr<char[], Aligned> plan;
  int64_t bytes = 0;
  double cutoff = 0.0;                // Angstrom
  std::vector<std::string> elements;  // in the order of the model's species
};

// Both put into `fault` what is wrong with the file and what to do about it; it stays empty where nothing is.
std::string read_whole(const std::string &path, std::string &fault);
Model parse_model(const std::string &content, const std::string &path, std::string &fault);

}  // namespace snnp_lammps
