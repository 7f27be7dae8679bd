// Opens damaged manifests and tasks, most of them with lengths and digests that are right again, and installs what is
// not refused: `piggyback_edge_fuzz RUNS SEED base.tflite manifest.bin task.edge...`. It fails when a byte changes that
// should not, and, built with sanitizers, when memory is touched that should not be. Prints what was said how often.

#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "piggyback_boxes.h"
#include "piggyback_edge.h"
#include "piggyback_label_maps.h"
#include "posix_files.h"

namespace {

using piggyback::Bytes;
using piggyback::Entry;
using piggyback::Error;
using piggyback::Manifest;
using piggyback::Task;
using Content = std::vector<uint8_t>;

constexpr size_t kDigest = 32, kTaskHeader = 256, kManifestHeader = 128, kRecord = 64, kSections = 6;

std::mt19937_64 random_numbers;
std::map<std::string, int> said;

size_t Random(size_t limit) { return limit == 0 ? 0 : random_numbers() % limit; }

void Require(bool good, const char* what) {
  if (good) return;
  fprintf(stderr, "piggyback_edge_fuzz: %s\n", what);
  exit(1);
}

// Memory of exactly this size, so that a byte behind it is seen by AddressSanitizer.
std::unique_ptr<uint8_t[]> Exactly(const Content& content) {
  std::unique_ptr<uint8_t[]> memory(new uint8_t[content.size()]);
  std::copy(content.begin(), content.end(), memory.get());
  return memory;
}

uint64_t Read64(const Content& content, size_t at) {
  uint64_t value;
  memcpy(&value, content.data() + at, 8);
  return value;
}

template <class T>
void Write(Content* content, size_t at, T value) {
  if (at + sizeof value <= content->size()) memcpy(content->data() + at, &value, sizeof value);
}

void WriteDigest(Content* content, size_t at, size_t from, size_t size) {
  const auto digest = piggyback::Sha256({content->data() + from, size});
  memcpy(content->data() + at, digest.data(), kDigest);
}

// Makes size and digest of a file right.
void Repair(Content* content) {
  if (content->size() < 24 + kDigest) return;
  Write<uint64_t>(content, 16, content->size());
  WriteDigest(content, content->size() - kDigest, 0, content->size() - kDigest);
}

// Changes a few bytes from `begin` on.
void ChangeBytes(Content* content, size_t begin) {
  constexpr uint64_t kNumbers[] = {0, 1, 2, 3, 4, 7, 8, 9, 255, 256, 65535, 65536, 0x7fffffff, 0x80000000, 0xffffffff,
                                   0x100000000, 0x7fffffffffffffff, 0x8000000000000000, 0xfffffffffffffff8, ~0ull};
  if (content->size() <= begin) return;
  for (size_t edits = 1 + Random(3); edits > 0; --edits) {
    const size_t at = begin + Random(content->size() - begin), aligned = at / 4 * 4;
    const uint64_t number = kNumbers[Random(sizeof kNumbers / sizeof kNumbers[0])];
    switch (Random(5)) {
      case 0: (*content)[at] = static_cast<uint8_t>((*content)[at] ^ 1u << Random(8)); break;
      case 1: (*content)[at] = static_cast<uint8_t>(Random(256)); break;
      case 2: Write(content, aligned, static_cast<uint32_t>(number)); break;
      case 3: Write(content, aligned, number); break;
      default: {
        uint32_t near = 0;
        if (aligned + sizeof near <= content->size()) memcpy(&near, content->data() + aligned, sizeof near);
        Write(content, aligned, static_cast<uint32_t>(near + Random(9) - 4));
      }
    }
  }
}

// Makes something longer or shorter.
void Resize(Content* content, size_t begin) {
  if (content->size() < begin) return;
  const size_t at = begin + Random(content->size() - begin + 1), length = 1 + Random(Random(2) == 0 ? 9 : 100);
  const auto place = content->begin() + static_cast<std::ptrdiff_t>(at);
  if (Random(2) == 0) {
    content->insert(place, length, static_cast<uint8_t>(Random(2) == 0 ? 0 : Random(256)));
  } else {
    content->erase(place, place + static_cast<std::ptrdiff_t>(std::min(length, content->size() - at)));
  }
}

// Gives a correction another length and as much content.
void ChangeCorrection(Content* section) {
  size_t at = 0;
  for (size_t skipped = Random(6); skipped > 0 && at + 16 < section->size(); --skipped)
    at += 16 + (Read64(*section, at + 8) + 7) / 8 * 8;
  if (at + 16 >= section->size()) return;
  const size_t before = (Read64(*section, at + 8) + 7) / 8 * 8, length = 1 + Random(Random(2) == 0 ? 2000 : 80);
  const auto content = section->begin() + static_cast<std::ptrdiff_t>(at + 16);
  section->erase(content, content + static_cast<std::ptrdiff_t>(std::min(before, section->size() - at - 16)));
  section->insert(section->begin() + static_cast<std::ptrdiff_t>(at + 16), (length + 7) / 8 * 8, 0);
  Write<uint64_t>(section, at + 8, length);
}

// Makes a constant of a manifest another one that agrees with itself, but perhaps not with the base and its neighbours.
void ChangeRecord(Content* manifest) {
  constexpr uint64_t kSizes[] = {4, 2, 1, 4, 8};
  const size_t at = kManifestHeader + Random((manifest->size() - kManifestHeader - kDigest) / kRecord) * kRecord;
  const uint64_t base_size = Read64(*manifest, 24), type = Random(5);
  const uint64_t channels = 1 + Random(20), inner = 1 + Random(4);
  const uint64_t elements = channels * inner * (1 + Random(Random(4) == 0 ? 1000 : 10));
  const bool scaled = type == 2 && (*manifest)[at] == 1;
  Write(manifest, at + 4, static_cast<uint32_t>(type + 1));
  if (Random(2) == 0) Write(manifest, at + 8, base_size - std::min<uint64_t>(base_size, Random(400)));
  Write(manifest, at + 16, elements * kSizes[type]);
  Write(manifest, at + 24, elements);
  Write(manifest, at + 32, static_cast<uint32_t>(channels));
  Write(manifest, at + 36, static_cast<uint32_t>(inner));
  Write<uint64_t>(manifest, at + 48, scaled ? Random(2) == 0 ? 8 : base_size - Random(100) : 0);
  Write(manifest, at + 56, static_cast<uint32_t>(scaled ? channels : 0));
}

// Changes one section of a good task, and lays all of them out anew.
Content ChangeSection(const Content& good) {
  Content result(good.begin(), good.begin() + kTaskHeader), masks;
  const size_t changed = Random(kSections);
  for (size_t i = 0; i < kSections; ++i) {
    const auto from = good.begin() + static_cast<std::ptrdiff_t>(Read64(good, 136 + 16 * i));
    Content section(from, from + static_cast<std::ptrdiff_t>(Read64(good, 144 + 16 * i)));
    if (i == changed && Random(2) == 0) Resize(&section, 0);
    if (i == changed && Random(3) != 0) ChangeBytes(&section, 0);
    if (i == 4 && i == changed && Random(2) == 0) ChangeCorrection(&section);
    if (i == 1) masks = section;
    Write<uint64_t>(&result, 136 + 16 * i, result.size());
    Write<uint64_t>(&result, 144 + 16 * i, section.size());
    result.insert(result.end(), section.begin(), section.end());
    result.resize((result.size() + 7) / 8 * 8);
  }
  if ((result[12] & 2) == 0 && Random(4) != 0) {
    const auto digest = piggyback::Sha256({masks.data(), masks.size()});
    std::copy(digest.begin(), digest.end(), result.begin() + 104);
  }
  result.resize(result.size() + kDigest);
  if (Random(3) == 0) ChangeBytes(&result, Random(2) == 0 ? 8 : 136);
  Repair(&result);
  return result;
}

Content ChangeTask(const Content& good) {
  if (Random(2) == 0) return ChangeSection(good);
  Content result = good;
  if (Random(3) == 0) Resize(&result, 0);
  if (Random(8) == 0) result.resize(Random(result.size()));
  ChangeBytes(&result, 0);
  if (Random(8) != 0) Repair(&result);
  return result;
}

Content ChangeManifest(const Content& good) {
  Content result = good;
  if (Random(4) == 0) Resize(&result, Random(2) == 0 ? 0 : kManifestHeader);
  if (Random(4) == 0) {
    // Another number of records, and a file that fits it.
    const size_t entries = Random(2 * (good.size() - kManifestHeader - kDigest) / kRecord);
    result.resize(kManifestHeader + entries * kRecord + kDigest);
    Write(&result, 12, static_cast<uint32_t>(entries));
  }
  if (Random(2) == 0 && result.size() > kManifestHeader + kRecord + kDigest) {
    ChangeRecord(&result);
    Repair(&result);
    return result;
  }
  // A record is as likely as all others together, so that most of them stay good.
  ChangeBytes(&result, Random(4) == 0 ? 0 : kManifestHeader + Random(result.size()) / kRecord * kRecord);
  if (Random(8) != 0) Repair(&result);
  return result;
}

void Count(Error error) {
  Require(!error || error.message[strlen(error.message) - 1] == '.', "an error is no sentence");
  ++said[error ? error.message : "accepted"];
}

// Numbers as a thread that runs models might have them: rounded upwards, without subnormal ones on processors with SSE.
class OtherFloats {
 public:
  OtherFloats() {
    fegetenv(&saved_);
    fesetround(FE_UPWARD);
#if defined(__SSE2__)
    _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
  }
  ~OtherFloats() { fesetenv(&saved_); }
  OtherFloats(const OtherFloats&) = delete;
  OtherFloats& operator=(const OtherFloats&) = delete;

 private:
  fenv_t saved_;
};

// Installs a task over another state and over the base itself, and removes it.
void Install(const Manifest& manifest, const Task& task, const Content& base) {
  const auto fresh = Exactly(base), dirty = Exactly(base), original = Exactly(base);
  const Bytes bytes{original.get(), base.size()};
  Content outside(base.size(), 1);
  for (uint32_t i = 0; i < manifest.entries(); ++i) {
    const Entry entry = manifest.entry(i);
    memset(dirty.get() + entry.offset, 0x5a, entry.size);
    memset(outside.data() + entry.offset, 0, entry.size);
  }
  {
    const OtherFloats other;
    Require(!task.Install(bytes, dirty.get(), base.size()), "a task that was opened cannot be installed");
    Require(fegetround() == FE_UPWARD, "installing changes how the thread rounds");
  }
  Require(!task.Install({fresh.get(), base.size()}, fresh.get(), base.size()), "a task cannot be installed in place");
  Require(memcmp(dirty.get(), fresh.get(), base.size()) == 0, "what was installed before plays a part");
  Require(std::equal(base.begin(), base.end(), original.get()), "the base changed");
  if (const uint8_t* digest = manifest.Installed({fresh.get(), base.size()}))
    memset(outside.data() + (digest - fresh.get()), 0, kDigest);
  for (size_t i = 0; i < base.size(); ++i)
    Require(outside[i] == 0 || fresh[i] == base[i], "a byte changed that is in no entry");
  Require(!manifest.Remove(bytes, dirty.get(), base.size()), "a task cannot be removed");
  Require(std::equal(base.begin(), base.end(), dirty.get()), "removing does not bring the base back");
  size_t letters = task.name().size() + task.augmentation().size() + task.base_name().size();
  for (uint32_t i = 0; i <= task.classes(); ++i) letters += task.label(i).size();
  Require(letters < 1u << 30, "there is more text than a file can have");
  const size_t outputs = task.signature().outputs();
  std::vector<float> output(outputs, 0.5f), probabilities(task.classes());
  std::vector<uint8_t> labels(task.signature().places, 77);
  std::vector<float> sides(size_t{4} * task.signature().places, 3.0f);
  piggyback::Box boxes[piggyback::kMostBoxes];
  size_t found = 0;
  const Bytes model{fresh.get(), base.size()};
  const auto answer = [&] {
    if (task.finds_boxes())
      return piggyback::ChooseBoxes(task, model, output.data(), sides.data(), 1, task.signature().places, boxes, &found);
    return task.finds_labels() ? task.Labels(model, output.data(), outputs, labels.data())
                               : task.Classify(model, output.data(), outputs, probabilities.data());
  };
  Require(!answer(), "a task does not answer");
  Require(!task.finds_labels() || labels.back() < task.classes(), "a label is of no class");
  for (size_t i = 0; i < found; ++i) Require(boxes[i].label < task.classes(), "a box is of no class");
  std::vector<uint8_t> own(7 * 11, 255);
  const Error unprepared = piggyback::AtOwnSize(task, labels.data(), 7, 11, own.data());
  Require(unprepared || *std::max_element(own.begin(), own.end()) < task.classes(), "a pixel is of no class");
  if (const uint8_t* digest = manifest.Installed(model)) {
    Require(std::equal(digest, digest + kDigest, task.digest().data()), "a model does not say what is on it");
    fresh[static_cast<size_t>(digest - fresh.get())] ^= 1u;
    Require(bool{answer()}, "another task's model is taken");
  }
}

void Try(const Content& base, const Content& manifest_content, const Content& task_content, Task* kept) {
  const auto manifest_memory = Exactly(manifest_content), task_memory = Exactly(task_content);
  Manifest manifest;
  Error error = manifest.Open({manifest_memory.get(), manifest_content.size()});
  if (error) return Count(error);
  Task task;
  error = task.Open(manifest, {task_memory.get(), task_content.size()});
  Count(error);
  const std::string name(kept->name());
  if (error) {
    Require(bool{kept->Open(manifest, {task_memory.get(), task_content.size()})}, "the second time it is another task");
    Require(name == kept->name(), "a task that was open changed");
  } else if (manifest.base_size() == base.size()) {
    Install(manifest, task, base);
  } else {
    Content copy = base;
    Require(bool{task.Install({base.data(), base.size()}, copy.data(), copy.size())}, "another base is taken");
  }
}

Content ReadAll(const char* path) {
  Content content;
  const piggyback::Status status = piggyback::ReadFile(path, &content);
  Require(status.ok(), status.message.c_str());
  return content;
}

}  // namespace

int main(int count, char** values) {
  Require(count >= 6, "usage: piggyback_edge_fuzz RUNS SEED base.tflite manifest.bin task.edge...");
  const int runs = atoi(values[1]);
  random_numbers.seed(static_cast<uint64_t>(atoi(values[2])));
  const Content base = ReadAll(values[3]), manifest_content = ReadAll(values[4]);
  std::vector<Content> tasks;
  for (int i = 5; i < count; ++i) tasks.push_back(ReadAll(values[i]));
  Manifest manifest;
  Error error = manifest.Open({manifest_content.data(), manifest_content.size()});
  Require(!error, error.message);
  Task kept;
  for (const Content& task : tasks) {
    error = kept.Open(manifest, {task.data(), task.size()});
    Require(!error, error.message);
    Install(manifest, kept, base);
  }
  for (int run = 0; run < runs; ++run) {
    const Content& task = tasks[Random(tasks.size())];
    if (run % 3 == 0) {
      Try(base, ChangeManifest(manifest_content), task, &kept);
    } else {
      Try(base, manifest_content, ChangeTask(task), &kept);
    }
  }
  for (const auto& [text, times] : said) printf("%d %s\n", times, text.c_str());
  return 0;
}
