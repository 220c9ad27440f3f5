// Copyright: (c) 2026, the llamacpp.cluster authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
//
// What llama.cpp reserves for a model, in bytes: the code that llama-fit-params and llama-server run, which
// themselves print whole MiB only. Takes llama-server's arguments. Prints two lines of JSON:
//   {"view": "fit", "rows": [["RPC0", model, context, compute], ..., ["Host", ...]]}
//   {"view": "server", ...}
// "fit" reserves rows of logits for a whole ubatch, as llama-fit-params does; "server" as many as llama-server.
// What the library logs goes to standard error, each view under its own "@@@ view".
// Built by make_truth.py against llama.cpp b11434.

#include "arg.h"
#include "common.h"
#include "fit.h"
#include "llama.h"
#include "log.h"
#include "speculative.h"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

static void show(const char * view, common_params & params) {
    auto mparams = common_model_params_to_llama(params);
    auto cparams = common_context_params_to_llama(params);
    std::vector<ggml_backend_dev_t> devices;
    uint32_t n_layers = 0;
    uint32_t n_ctx_train = 0;
    uint32_t n_experts = 0;
    fprintf(stderr, "\n@@@ %s\n", view);
    std::string line = std::string("{\"view\": \"") + view + "\", ";
    try {
        const auto found = common_get_device_memory_data(
            params.model.path.c_str(), &mparams, &cparams, devices, n_layers, n_ctx_train, n_experts, GGML_LOG_LEVEL_DEBUG);
        line += "\"rows\": [";
        for (size_t i = 0; i < found.size(); i++) {
            const std::string name = i < devices.size() ? ggml_backend_dev_name(devices[i]) : "Host";
            line += (i ? ", [\"" : "[\"") + name + "\", " + std::to_string(found[i].model) + ", " +
                std::to_string(found[i].context) + ", " + std::to_string(found[i].compute) + "]";
        }
        line += "]}";
    } catch (const std::exception & error) {
        line += std::string("\"error\": \"") + error.what() + "\"}";
    }
    common_log_flush(common_log_main());
    printf("%s\n", line.c_str());
    fflush(stdout);
}

int main(int argc, char ** argv) {
    common_params params;
    common_init();
    if (!common_params_parse(argc, argv, params, LLAMA_EXAMPLE_SERVER)) {
        return 1;
    }
    common_log_set_verbosity_thold(LOG_LEVEL_DEBUG);
    llama_backend_init();

    common_params fit = params;
    fit.n_parallel = std::max(1, fit.n_parallel);
    show("fit", fit);

    // As tools/server/server.cpp and server_output_limits() in server-context.cpp.
    if (params.embedding && params.n_batch > params.n_ubatch) {
        params.n_batch = params.n_ubatch;
    }
    if (params.n_parallel < 0) {
        params.n_parallel = 4;
        params.kv_unified = true;
    }
    auto limits = common_speculative_get_output_limits(params.n_batch, params.n_parallel, 0);
    if (params.embedding) {
        limits = { params.n_batch, 1 };
    }
    params.n_outputs_max = std::max(1, limits.total);
    params.n_outputs_max_per_seq = std::max(1, limits.per_seq);
    show("server", params);
    return 0;
}
