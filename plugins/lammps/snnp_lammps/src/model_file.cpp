#include "model_file.h"

#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "snnp_kernels.h"

namespace snnp_lammps {
namespace {

constexpr int kFormat = 1;
constexpr size_t kMostBytes = size_t(1) << 30;  // no model comes near, and MPI counts in int

// As zlib's: IEEE 802.3, reflected.
uint32_t crc32(const char *bytes, size_t count) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t k = 0; k < 256; ++k) {
      uint32_t value = k;
      for (int bit = 0; bit < 8; ++bit) value = value & 1 ? 0xEDB88320u ^ (value >> 1) : value >> 1;
      made[k] = value;
    }
    return made;
  }();
  uint32_t sum = 0xFFFFFFFFu;
  for (size_t k = 0; k < count; ++k) sum = table[(sum ^ static_cast<unsigned char>(bytes[k])) & 0xFF] ^ (sum >> 8);
  return sum ^ 0xFFFFFFFFu;
}

// The words behind `name` on its line of the header.
std::vector<std::string> words_of(const std::string &header, const std::string &name) {
  std::istringstream lines(header);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string word;
    if (!(words >> word) || word != name) continue;
    std::vector<std::string> found;
    while (words >> word) found.push_back(word);
    return found;
  }
  return {};
}

}  // namespace

std::string read_whole(const std::string &path, std::string &fault) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (!file || !(content << file.rdbuf())) {
    fault = "cannot read the snnp file '" + path + "': there is none, or it is empty, a folder, or not yours to read; "
            "write it with "
            "'snnp export MODEL FILE --format lammps'";
    return {};
  }
  std::string text = content.str();
  if (text.size() > kMostBytes) fault = "'" + path + "' is larger than any snnp file; name the right file";
  return fault.empty() ? text : std::string();
}

Model parse_model(const std::string &content, const std::string &path, std::string &fault) {
  Model model;
  const std::string cure = "; write it again with 'snnp export MODEL FILE --format lammps'";
  const size_t line = content.find('\n');
  int format = 0;
  int64_t header_bytes = 0, plan_bytes = 0;
  uint32_t sum = 0;
  const std::string first = content.substr(0, line == std::string::npos ? 0 : line);
  const int found = sscanf(first.c_str(), "snnp-lammps %d %" SCNd64 " %" SCNd64 " %" SCNx32, &format, &header_bytes,
                           &plan_bytes, &sum);
  if (found < 1) {
    fault = "'" + path + "' is no snnp file for LAMMPS" + cure;
  } else if (format > kFormat) {
    fault = "'" + path + "' has format " + std::to_string(format) + ", this plugin reads up to " +
            std::to_string(kFormat) + "; build the plugin again with the snnp that wrote the file";
  } else if (found < 4 || header_bytes < 0 || plan_bytes < 0 || header_bytes > int64_t(kMostBytes) ||
             plan_bytes > int64_t(kMostBytes) || int64_t(content.size() - line - 1) != header_bytes + plan_bytes) {
    fault = "'" + path + "' is cut short or damaged" + cure;
  } else if (crc32(content.data() + line + 1, content.size() - line - 1) != sum) {
    fault = "'" + path + "' is damaged: its checksum is wrong" + cure;
  }
  if (!fault.empty()) return model;

  model.bytes = plan_bytes;
  model.plan.reset(new (Aligned::kAlignment) char[static_cast<size_t>(plan_bytes) + 1]);
  memcpy(model.plan.get(), content.data() + line + 1 + header_bytes, static_cast<size_t>(plan_bytes));
  model.elements = words_of(content.substr(line + 1, static_cast<size_t>(header_bytes)), "elements");
  snnp_model says;
  if (snnp_describe(model.plan.get(), plan_bytes, &says) != SNNP_OK ||
      says.n_elements != int64_t(model.elements.size())) {
    fault = "'" + path + "' is not packed for the kernel of this plugin (version " + std::to_string(snnp_version()) +
            "); export it with the snnp that built the plugin, or build the plugin again";
    return model;
  }
  model.cutoff = says.cutoff;
  return model;
}

}  // namespace snnp_lammps
