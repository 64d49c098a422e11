// fault_proxy: the proxy as a program, for trials by hand and benchmarks.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "fault_proxy.h"

int main(int argc, char** argv) {
  using namespace tessera::services;
  FaultOptions options;
  double latency_ms = 0;
  double megabytes_per_s = 0;
  std::string upstream;
  CLI::App app{"Passes HTTP requests on, with delays, limits and faults."};
  app.add_option("--listen", options.listen_port, "Port; any free one where absent");
  auto* to = app.add_option("--upstream", upstream, "HOST:PORT of the server");
  app.add_option("--folder", options.folder, "Serve the files of a folder instead")->excludes(to);
  app.add_option("--latency-ms", latency_ms);
  app.add_option("--megabytes-per-s", megabytes_per_s);
  app.add_option("--seed", options.seed);
  app.add_option("--internal-error", options.internal_error, "Probability of a 500");
  app.add_option("--slow-down", options.slow_down, "Probability of a 503");
  app.add_option("--reset", options.reset, "Probability of a reset connection");
  app.add_option("--truncate", options.truncate, "Probability of a cut answer");
  app.add_option("--lose-answer", options.lose_answer, "Probability of a lost answer");
  app.footer("Example:\n  fault_proxy --listen 7500 --upstream 127.0.0.1:7480 --latency-ms 20 --reset 0.05");
  CLI11_PARSE(app, argc, argv);
  options.latency_s = latency_ms / 1000;
  options.bandwidth_bytes_per_s = static_cast<int64_t>(megabytes_per_s * 1e6);
  if (const size_t colon = upstream.rfind(':'); colon != upstream.npos) {
    options.upstream_host = upstream.substr(0, colon);
    options.upstream_port = std::stoi(upstream.substr(colon + 1));
  } else if (options.folder.empty()) {
    fmt::print(stderr, "fault_proxy: --upstream HOST:PORT or --folder is needed\n");
    return 2;
  }
  auto proxy = FaultProxy::Start(std::move(options));
  if (!proxy.ok()) {
    fmt::print(stderr, "fault_proxy: {}\n", proxy.error().message);
    return 1;
  }
  fmt::print("{}\n", (*proxy)->url());
  std::fflush(stdout);
  while (true) ::pause();
}
