/* See spec.h. Schemas are sorted by name, as FastAPI sorts them; so the parameter tables are sorted in among
 * them. */
#include "spec.h"

#include <string.h>

#include "image_to_image.h"
#include "image_to_video.h"
#include "text_to_image.h"
#include "upscale.h"

const char *const status_names[STATUS_NAMES] = {"LOADING", "OK", "ERROR", "IDLE"};

#define GPU_FIELDS                                                                                           \
    {"id", "Id", FIELD_STRING, NULL, NULL, false}, {"name", "Name", FIELD_STRING, NULL, NULL, false},        \
        {"memory_total", "Memory Total", FIELD_INTEGER, NULL, NULL, false},                                  \
    {                                                                                                        \
        "memory_free", "Memory Free", FIELD_INTEGER, NULL, NULL, false                                       \
    }
#define IDENTITY_FIELDS                                                                                      \
    {"pipeline", "Pipeline", FIELD_STRING, NULL, NULL, false},                                               \
    {                                                                                                        \
        "model_id", "Model Id", FIELD_STRING, NULL, NULL, false                                              \
    }

const struct schema schemas[] = {
    {"APIError",
     "API error response model.",
     {{"msg", "Msg", FIELD_STRING, NULL, "The error message.", false}}},
    {"GPUComputeInfo",
     "Model for detailed GPU compute information.",
     {GPU_FIELDS,
      {"major", "Major", FIELD_INTEGER, NULL, NULL, false},
      {"minor", "Minor", FIELD_INTEGER, NULL, NULL, false}}},
    {"GPUUtilizationInfo",
     "Model for GPU utilization statistics.",
     {GPU_FIELDS,
      {"utilization_compute", "Utilization Compute", FIELD_INTEGER, NULL, NULL, false},
      {"utilization_memory", "Utilization Memory", FIELD_INTEGER, NULL, NULL, false}}},
    {"HTTPError",
     "HTTP error response model.",
     {{"detail", NULL, FIELD_REF, "APIError", "Detailed error information.", false}}},
    {"HTTPValidationError", NULL, {{"detail", "Detail", FIELD_LIST, "ValidationError", NULL, true}}},
    {"HardwareInformation",
     "Response model for GPU information.",
     {IDENTITY_FIELDS, {"gpu_info", "Gpu Info", FIELD_MAP, "GPUComputeInfo", NULL, false}}},
    {"HardwareStats",
     "Response model for real-time GPU statistics.",
     {IDENTITY_FIELDS, {"gpu_stats", "Gpu Stats", FIELD_MAP, "GPUUtilizationInfo", NULL, false}}},
    {"HealthCheck",
     NULL,
     {{"status", "Status", FIELD_STATUS, NULL, "The health status of the pipeline", false}}},
    {"ImageResponse",
     "Response model for image generation.",
     {{"images", "Images", FIELD_LIST, "Media", "The generated images.", false}}},
    {"Media",
     "A media object containing information about the generated media.",
     {{"url", "Url", FIELD_STRING, NULL, "The URL where the media can be accessed.", false},
      {"seed", "Seed", FIELD_INTEGER, NULL, "The seed used to generate the media.", false},
      {"nsfw", "Nsfw", FIELD_BOOLEAN, NULL, "Whether the media was flagged as NSFW.", false}}},
    {"ValidationError",
     NULL,
     {{"loc", "Location", FIELD_LOCATION, NULL, NULL, false},
      {"msg", "Message", FIELD_STRING, NULL, NULL, false},
      {"type", "Error Type", FIELD_STRING, NULL, NULL, false}}},
    {"Version",
     NULL,
     {IDENTITY_FIELDS, {"version", "Version", FIELD_STRING, NULL, "The version of the Runner", false}}},
    {"Video",
     "The frames as one H.264 video, or why there is none.",
     {{"url", "Url", FIELD_STRING, NULL, "Path on this server, kept for a while.", true},
      {"error", "Error", FIELD_STRING, NULL, "Why there is no video.", true}}},
    {"VideoResponse",
     "Response model for video generation.",
     {{"frames", "Frames", FIELD_LISTS, "Media", "The generated video frames.", false},
      {"video", NULL, FIELD_REF, "Video", "The frames as one video.", true}}},
};

const int schema_count = sizeof(schemas) / sizeof(*schemas);

const struct schema *schema_find(const char *name)
{
    for (int i = 0; i < schema_count; i++)
        if (strcmp(schemas[i].name, name) == 0)
            return &schemas[i];
    return NULL;
}

const struct endpoint endpoints[] = {
    {"/text-to-image", "Text To Image", "genTextToImage", "textToImage", "ImageResponse",
     "Generate images from text prompts.", &text_to_image_table},
    {"/image-to-image", "Image To Image", "genImageToImage", "imageToImage", "ImageResponse",
     "Apply image transformations to a provided image.", &image_to_image_table},
    {"/image-to-video", "Image To Video", "genImageToVideo", "imageToVideo", "VideoResponse",
     "Generate a video from a provided image.", &image_to_video_table},
    {"/upscale", "Upscale", "genUpscale", "upscale", "ImageResponse",
     "Upscale an image by increasing its resolution.", &upscale_table},
};
const int endpoint_count = sizeof(endpoints) / sizeof(*endpoints);

bool endpoint_served(const struct endpoint *e, const char *pipeline)
{
    return !pipeline || strcmp(e->path + 1, pipeline) == 0;
}

const struct lookup lookups[] = {
    {"/health", "Health", "health", "HealthCheck",
     "LOADING (with status 503), OK or ERROR. Always answers, also while a picture is made."},
    {"/hardware/info", "Hardware Info", "hardware_info", "HardwareInformation",
     "The GPUs in use; none on the CPU."},
    {"/hardware/stats", "Hardware Stats", "hardware_stats", "HardwareStats", "How busy they are."},
    {"/version", "Version", "version", "Version", "What runs here."},
};
const int lookup_count = sizeof(lookups) / sizeof(*lookups);

const struct failure_reply failure_replies[FAILURE_REPLIES] = {
    {"400", "Bad Request", "HTTPError",
     "The request cannot be served as it is; the text says what is wrong."},
    {"401", "Unauthorized", "HTTPError", "The bearer token is missing or wrong."},
    {"500", "Internal Server Error", "HTTPError",
     "The picture could not be made. A text with the words \"insufficient capacity\" is worth another try: "
     "the queue is full, the model is still loading, or the server is shutting down."},
    {"422", "Validation Error", "HTTPValidationError",
     "Parameters that are missing or of the wrong type: one entry for each."},
};
