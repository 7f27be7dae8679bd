// Puts tasks on a base.tflite, from the command line; see README.md beside this file.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "piggyback_boxes.h"
#include "piggyback_edge.h"
#include "piggyback_label_maps.h"
#include "posix_files.h"

namespace {

using piggyback::Bytes;
using piggyback::Manifest;
using piggyback::Status;
using piggyback::Task;
using Content = std::vector<uint8_t>;
using Arguments = std::vector<std::string>;

Bytes BytesOf(const Content& content) { return {content.data(), content.size()}; }

// Prints a string of a task between quotes, with all but printable ASCII escaped as in JSON: strangers wrote it.
void PrintText(std::string_view text) {
  putchar('"');
  for (size_t i = 0; i < text.size();) {
    const unsigned lead = static_cast<unsigned char>(text[i++]);
    unsigned code = lead;
    if (lead >= 0xc0) {
      const int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
      code = lead & (0x3fu >> more);
      for (int k = 0; k < more; ++k) code = code << 6 | (static_cast<unsigned char>(text[i++]) & 0x3fu);
    }
    if (code >= 0x10000) {
      printf("\\u%04x\\u%04x", 0xd800 + ((code - 0x10000) >> 10), 0xdc00 + ((code - 0x10000) & 0x3ff));
    } else if (code < 0x20 || code >= 0x7f || code == '"' || code == '\\') {
      printf("\\u%04x", code);
    } else {
      putchar(static_cast<int>(code));
    }
  }
  putchar('"');
}

std::string Hexadecimal(const uint8_t* digest) {
  std::string text(64, ' ');
  for (size_t i = 0; i < 64; ++i) text[i] = "0123456789abcdef"[i % 2 == 0 ? digest[i / 2] >> 4 : digest[i / 2] & 15];
  return text;
}

// A manifest or a task with the bytes that it looks at.
struct OpenManifest {
  Content content;
  Manifest manifest;
  Status Open(const std::string& path) {
    if (Status status = piggyback::ReadFile(path, &content); !status.ok()) return status;
    return manifest.Open(BytesOf(content));
  }
};
struct OpenTask {
  Content content;
  Task task;
  Status Open(const std::string& path, const Manifest& manifest) {
    if (Status status = piggyback::ReadFile(path, &content); !status.ok()) return status;
    return task.Open(manifest, BytesOf(content));
  }
};

Status RunInstall(const Arguments& arguments) {
  OpenManifest manifest;
  OpenTask task;
  if (Status status = piggyback::CheckModelTarget(arguments[3], {arguments[1], arguments[2]}); !status.ok()) return status;
  if (Status status = manifest.Open(arguments[1]); !status.ok()) return status;
  if (Status status = task.Open(arguments[2], manifest.manifest); !status.ok()) return status;
  // An app need not write a file. It reads base.tflite into memory (say, a private mapping of the file), verifies it
  // once, and for each task calls task.Install(base, copy, size). The copy then is the model that LiteRT takes:
  //
  //   TfLiteModel* model = TfLiteModelCreate(copy, size);   // The copy must live as long as the model.
  //   TfLiteInterpreter* interpreter = TfLiteInterpreterCreate(model, options);
  //
  // An interpreter keeps filters in an order of its own: delete it and make it anew whenever a task was installed.
  Status status = piggyback::InstallFile(arguments[0], manifest.manifest, task.task, arguments[3]);
  // XNNPACK does not compare a weight cache with the model: each task needs a file of its own.
  if (status.ok()) printf("%s.%.32s.xnnpack\n", arguments[3].c_str(), Hexadecimal(task.task.digest().data()).c_str());
  return status;
}

// Prints the digest of the task on a model, and which of the files of tasks it is.
Status RunInstalled(const Arguments& arguments) {
  OpenManifest manifest;
  Content model;
  if (Status status = manifest.Open(arguments[0]); !status.ok()) return status;
  if (Status status = piggyback::ReadFile(arguments[1], &model); !status.ok()) return status;
  const uint8_t* digest = manifest.manifest.Installed(BytesOf(model));
  if (digest == nullptr)
    return Status("'" + arguments[1] + "' does not say which task is on it: it is of another or of an older base.");
  if (std::all_of(digest, digest + 32, [](uint8_t byte) { return byte == 0; })) {
    printf("none\n");
    return Status();
  }
  printf("%s\n", Hexadecimal(digest).c_str());
  for (size_t i = 2; i < arguments.size(); ++i) {
    OpenTask task;
    if (Status status = task.Open(arguments[i], manifest.manifest); !status.ok())
      return Status("'" + arguments[i] + "': " + status.message);
    if (std::equal(digest, digest + 32, task.task.digest().data())) printf("%s\n", arguments[i].c_str());
  }
  return Status();
}

Status RunRemove(const Arguments& arguments) {
  OpenManifest manifest;
  Content base, model;
  if (Status status = piggyback::CheckModelTarget(arguments[2], {arguments[0], arguments[1]}); !status.ok()) return status;
  if (Status status = manifest.Open(arguments[1]); !status.ok()) return status;
  if (Status status = piggyback::ReadFile(arguments[0], &base); !status.ok()) return status;
  if (Status status = manifest.manifest.Verify(BytesOf(base)); !status.ok()) return status;
  if (Status status = piggyback::ReadFile(arguments[2], &model); !status.ok()) return status;
  if (Status status = manifest.manifest.Remove(BytesOf(base), model.data(), model.size()); !status.ok()) return status;
  if (Status status = manifest.manifest.Verify(BytesOf(model)); !status.ok())
    return Status("'" + arguments[2] + "' is not this base with a task on it.");
  return piggyback::WriteFile(arguments[2], BytesOf(model));
}

Status RunVerify(const Arguments& arguments) {
  OpenManifest manifest;
  Content base;
  if (Status status = manifest.Open(arguments[1]); !status.ok()) return status;
  if (Status status = piggyback::ReadFile(arguments[0], &base); !status.ok()) return status;
  if (Status status = manifest.manifest.Verify(BytesOf(base)); !status.ok()) return status;
  for (size_t i = 2; i < arguments.size(); ++i) {
    OpenTask task;
    if (Status status = task.Open(arguments[i], manifest.manifest); !status.ok())
      return Status("'" + arguments[i] + "': " + status.message);
  }
  return Status();
}

Status RunInspect(const Arguments& arguments) {
  OpenManifest open;
  OpenTask opened;
  if (Status status = open.Open(arguments[0]); !status.ok()) return status;
  if (Status status = opened.Open(arguments[1], open.manifest); !status.ok()) return status;
  const Manifest& manifest = open.manifest;
  const Task& task = opened.task;
  constexpr const char* kQuantizations[] = {"none", "float16", "dynamic", "int8"};
  printf("{\"base_bytes\": %u, \"entries\": %u, \"features\": %u, \"max_classes\": %u, \"image_size\": %u,\n",
         manifest.base_size(), manifest.entries(), manifest.features(), manifest.max_classes(), manifest.image_size());
  printf(" \"quantize\": \"%s\", \"flags\": %u,\n \"task\": ", kQuantizations[manifest.quantization()], task.flags());
  PrintText(task.name());
  printf(", \"eval_augment\": ");
  PrintText(task.augmentation());
  printf(",\n \"base_name\": ");
  PrintText(task.base_name());
  printf(", \"preprocessing\": ");
  PrintText(task.preprocessing());
  if (manifest.max_classes() + manifest.features() == 0 || !task.head().empty()) {
    constexpr const char* kAnswers[] = {"softmax", "argmax", "sigmoid", "boxes"};
    const piggyback::Signature& graph = task.signature();
    printf(",\n \"signature\": \"%.*s\", \"height\": %u, \"width\": %u, \"room\": %u, \"places\": %u,\n",
           static_cast<int>(graph.name.size()), graph.name.data(), graph.height, graph.width, graph.room, graph.places);
    printf(" \"answer\": \"%s\", \"problem\": ", kAnswers[task.answer()]);
    PrintText(task.problem());
    printf(", \"head\": ");
    PrintText(task.head());
  }
  printf(",\n \"class_names\": [");
  for (uint32_t i = 0; i < task.classes(); ++i) {
    printf(i > 0 ? ", " : "");
    PrintText(task.label(i));
  }
  printf("]}\n");
  return Status();
}

Status RunClassify(const Arguments& arguments) {
  OpenManifest manifest;
  OpenTask task;
  Content model;
  if (Status status = manifest.Open(arguments[0]); !status.ok()) return status;
  if (Status status = task.Open(arguments[1], manifest.manifest); !status.ok()) return status;
  if (Status status = piggyback::ReadFile(arguments[2], &model); !status.ok()) return status;
  std::vector<float> output, probabilities(task.task.classes());
  for (size_t i = 3; i < arguments.size(); ++i) {
    char* end = nullptr;
    output.push_back(strtof(arguments[i].c_str(), &end));
    if (arguments[i].empty() || *end != '\0') return Status("'" + arguments[i] + "' is no number.");
  }
  const Status status =
      task.task.Classify(BytesOf(model), output.data(), output.size(), probabilities.data());
  if (!status.ok()) return status;
  for (uint32_t i = 0; i < task.task.classes(); ++i) {
    printf("%.9g ", static_cast<double>(probabilities[i]));
    PrintText(task.task.label(i));
    printf("\n");
  }
  return Status();
}

// Writes the label map of an output, both files of nothing but numbers: float32 in, a byte for each place out. With a
// height and a width it is that of an image of this size.
Status RunLabels(const Arguments& arguments) {
  OpenManifest manifest;
  OpenTask task;
  Content model, content;
  uint32_t sides[2] = {};
  for (size_t i = 5; i < arguments.size(); ++i) {
    char* end = nullptr;
    const unsigned long side = strtoul(arguments[i].c_str(), &end, 10);
    if (arguments.size() != 7 || side < 1 || side > 65535 || *end != '\0')
      return Status(std::string("The size of an image is two numbers of 1 to 65535: its height and its width."));
    sides[i - 5] = static_cast<uint32_t>(side);
  }
  if (Status status = piggyback::CheckTarget(arguments[4], {arguments[0], arguments[1], arguments[2], arguments[3]});
      !status.ok())
    return status;
  if (Status status = manifest.Open(arguments[0]); !status.ok()) return status;
  if (Status status = task.Open(arguments[1], manifest.manifest); !status.ok()) return status;
  if (Status status = piggyback::ReadFile(arguments[2], &model); !status.ok()) return status;
  if (Status status = piggyback::ReadFile(arguments[3], &content); !status.ok()) return status;
  std::vector<float> output(content.size() / sizeof(float));
  if (!output.empty()) memcpy(output.data(), content.data(), output.size() * sizeof(float));
  Content labels(task.task.signature().places);
  Status status = task.task.Labels(BytesOf(model), output.data(), output.size(), labels.data());
  if (status.ok() && sides[0] > 0) {
    Content own(size_t{sides[0]} * sides[1]);
    status = piggyback::AtOwnSize(task.task, labels.data(), sides[0], sides[1], own.data());
    labels.swap(own);
  }
  return status.ok() ? piggyback::WriteFile(arguments[4], BytesOf(labels)) : status;
}

// Prints the boxes of an image, a line each, of scores and sides in files of nothing but numbers, float32.
Status RunBoxes(const Arguments& arguments) {
  OpenManifest manifest;
  OpenTask task;
  Content model, contents[2];
  std::vector<float> outputs[2];
  if (Status status = manifest.Open(arguments[0]); !status.ok()) return status;
  if (Status status = task.Open(arguments[1], manifest.manifest); !status.ok()) return status;
  if (Status status = piggyback::ReadFile(arguments[2], &model); !status.ok()) return status;
  for (size_t i = 0; i < 2; ++i) {
    if (Status status = piggyback::ReadFile(arguments[3 + i], &contents[i]); !status.ok()) return status;
    outputs[i].resize(contents[i].size() / sizeof(float));
    if (!outputs[i].empty()) memcpy(outputs[i].data(), contents[i].data(), outputs[i].size() * sizeof(float));
  }
  const unsigned long rows = strtoul(arguments[5].c_str(), nullptr, 10);
  const size_t places = outputs[1].size() / 4, room = task.task.signature().room;
  if (rows < 1 || places % rows != 0 || places > 0xffffffff || outputs[0].size() != places * room)
    return Status(std::string("Scores and sides are not of so many rows of places."));
  piggyback::Box boxes[piggyback::kMostBoxes];
  size_t count = 0;
  const Status status =
      piggyback::ChooseBoxes(task.task, BytesOf(model), outputs[0].data(), outputs[1].data(),
                             static_cast<uint32_t>(rows), static_cast<uint32_t>(places / rows), boxes, &count);
  for (size_t i = 0; status.ok() && i < count; ++i) {
    const piggyback::Box& box = boxes[i];
    for (const float number : {box.top, box.left, box.bottom, box.right, box.score})
      printf("%.9g ", static_cast<double>(number));
    PrintText(task.task.label(box.label));
    printf("\n");
  }
  return status;
}

// Prints the shortest of some times of each call, in milliseconds.
Status RunTime(const Arguments& arguments) {
  OpenManifest manifest;
  OpenTask task;
  Content base;
  if (Status status = manifest.Open(arguments[1]); !status.ok()) return status;
  if (Status status = piggyback::ReadFile(arguments[0], &base); !status.ok()) return status;
  if (Status status = task.Open(arguments[2], manifest.manifest); !status.ok()) return status;
  Content copy = base;
  const auto measure = [](const char* name, auto call) {
    std::chrono::duration<double, std::milli> best(1e9);
    for (int i = 0; i < 9; ++i) {
      const auto start = std::chrono::steady_clock::now();
      if (Status status = call(); !status.ok()) return status;
      best = std::min<decltype(best)>(best, std::chrono::steady_clock::now() - start);
    }
    printf("%s %.3f\n", name, best.count());
    return Status();
  };
  Task again;
  if (Status status = measure("verify", [&] { return manifest.manifest.Verify(BytesOf(base)); }); !status.ok())
    return status;
  if (Status status = measure("open", [&] { return again.Open(manifest.manifest, BytesOf(task.content)); });
      !status.ok())
    return status;
  if (Status status = measure("install", [&] { return task.task.Install(BytesOf(base), copy.data(), copy.size()); });
      !status.ok())
    return status;
  return measure("remove", [&] { return manifest.manifest.Remove(BytesOf(base), copy.data(), copy.size()); });
}

struct Command {
  const char* name;
  const char* arguments;
  size_t least, most;
  Status (*run)(const Arguments&);
};

constexpr size_t kAny = static_cast<size_t>(-1);
constexpr Command kCommands[] = {
    {"install", "base.tflite manifest.bin task.edge model.tflite", 4, 4, RunInstall},
    {"remove", "base.tflite manifest.bin model.tflite", 3, 3, RunRemove},
    {"verify", "base.tflite manifest.bin [task.edge ...]", 2, kAny, RunVerify},
    {"inspect", "manifest.bin task.edge", 2, 2, RunInspect},
    {"installed", "manifest.bin model.tflite [task.edge ...]", 2, kAny, RunInstalled},
    {"classify", "manifest.bin task.edge model.tflite number ...", 3, kAny, RunClassify},
    {"labels", "manifest.bin task.edge model.tflite output.f32 labels.u8 [height width]", 5, 7, RunLabels},
    {"boxes", "manifest.bin task.edge model.tflite scores.f32 sides.f32 rows", 6, 6, RunBoxes},
    {"time", "base.tflite manifest.bin task.edge", 3, 3, RunTime},
};

}  // namespace

int main(int count, char** values) {
  const Arguments arguments(values + std::min(count, 2), values + count);
  for (const Command& command : kCommands) {
    if (count < 2 || strcmp(values[1], command.name) != 0) continue;
    if (arguments.size() < command.least || arguments.size() > command.most) break;
    const Status status = command.run(arguments);
    if (!status.ok()) fprintf(stderr, "piggyback_edge: %s\n", status.message.c_str());
    // An answer that did not arrive, as on a full disk, is none.
    const bool written = fflush(stdout) == 0 && ferror(stdout) == 0;
    if (!written) fprintf(stderr, "piggyback_edge: The output cannot be written.\n");
    return status.ok() && written ? 0 : 2;
  }
  for (const Command& command : kCommands)
    fprintf(stderr, "usage: piggyback_edge %s %s\n", command.name, command.arguments);
  return 2;
}
