/* The configs of the published repositories that single-file checkpoints of each family are read with, as
 * diffusers' from_single_file takes them (DIFFUSERS_DEFAULT_PIPELINE_PATHS): stable-diffusion-v1-5,
 * stabilityai/stable-diffusion-2-1, stabilityai/stable-diffusion-xl-base-1.0, timbrooks/instruct-pix2pix.
 * Only the fields that a loader reads. A file of the same name beside the checkpoint goes first. */
#include <string.h>

#include "single_file.h"

#define UNET_SD                                                                                              \
    "\"_class_name\":\"UNet2DConditionModel\",\"act_fn\":\"silu\",\"block_out_channels\":[320,640,1280,"     \
    "1280],"                                                                                                 \
    "\"down_block_types\":[\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\","      \
    "\"DownBlock2D\"],\"up_block_types\":[\"UpBlock2D\",\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\","      \
    "\"CrossAttnUpBlock2D\"],\"downsample_padding\":1,\"flip_sin_to_cos\":true,\"freq_shift\":0,"            \
    "\"layers_per_block\":2,\"mid_block_scale_factor\":1,\"norm_eps\":1e-05,\"norm_num_groups\":32,"         \
    "\"out_channels\":4,\"center_input_sample\":false,"

#define VAE_SD                                                                                               \
    "\"_class_name\":\"AutoencoderKL\",\"act_fn\":\"silu\",\"block_out_channels\":[128,256,512,512],"        \
    "\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\","            \
    "\"DownEncoderBlock2D\"],\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\","                 \
    "\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"],\"in_channels\":3,\"out_channels\":3,\"latent_channels\":4," \
    "\"layers_per_block\":2,\"norm_num_groups\":32,"

#define TEXT                                                                                                 \
    "\"model_type\":\"clip_text_model\",\"vocab_size\":49408,\"max_position_embeddings\":77,"                \
    "\"layer_norm_eps\":1e-05,\"bos_token_id\":0,\"eos_token_id\":2,"

#define BETAS                                                                                                \
    "\"beta_start\":0.00085,\"beta_end\":0.012,\"beta_schedule\":\"scaled_linear\",\"clip_sample\":false,"   \
    "\"num_train_timesteps\":1000,\"set_alpha_to_one\":false,\"skip_prk_steps\":true,\"steps_offset\":1,"    \
    "\"trained_betas\":null,"

#define PARTS                                                                                                \
    "\"scheduler\":[\"diffusers\",\"\"],\"tokenizer\":[\"transformers\",\"CLIPTokenizer\"],"                 \
    "\"text_encoder\":[\"transformers\",\"CLIPTextModel\"],\"unet\":[\"diffusers\","                         \
    "\"UNet2DConditionModel\"],"                                                                             \
    "\"vae\":[\"diffusers\",\"AutoencoderKL\"],\"safety_checker\":[null,null],"
#define PARTS_2                                                                                              \
    PARTS "\"tokenizer_2\":[\"transformers\",\"CLIPTokenizer\"],"                                            \
          "\"text_encoder_2\":[\"transformers\",\"CLIPTextModelWithProjection\"],"

#define UNET_SD1 "{" UNET_SD "\"attention_head_dim\":8,\"cross_attention_dim\":768,\"sample_size\":64,"
#define TEXT_VIT_L                                                                                           \
    "{" TEXT "\"hidden_act\":\"quick_gelu\",\"hidden_size\":768,\"intermediate_size\":3072,"                 \
    "\"num_attention_heads\":12,\"num_hidden_layers\":12,\"projection_dim\":768}"
#define VAE_SD1 "{" VAE_SD "\"sample_size\":512,\"scaling_factor\":0.18215}"

static const struct {
    const char *index, *scheduler, *unet, *vae, *text, *text_2;
} configs[SINGLE_FAMILIES] = {
    [SINGLE_SD1] =
        {
            .index = "{" PARTS "\"_class_name\":\"StableDiffusionPipeline\"}",
            .scheduler = "{\"_class_name\":\"PNDMScheduler\"," BETAS "\"prediction_type\":\"epsilon\"}",
            .unet = UNET_SD1 "\"in_channels\":4}",
            .vae = VAE_SD1,
            .text = TEXT_VIT_L,
        },
    [SINGLE_PIX2PIX] =
        {
            .index = "{" PARTS "\"_class_name\":\"StableDiffusionInstructPix2PixPipeline\"}",
            .scheduler = "{\"_class_name\":\"EulerAncestralDiscreteScheduler\"," BETAS
                         "\"prediction_type\":\"epsilon\"}",
            .unet = UNET_SD1 "\"in_channels\":8}",
            .vae = VAE_SD1,
            .text = TEXT_VIT_L,
        },
    [SINGLE_SD2] =
        {
            .index = "{" PARTS "\"_class_name\":\"StableDiffusionPipeline\"}",
            .scheduler = "{\"_class_name\":\"DDIMScheduler\"," BETAS "\"prediction_type\":\"v_prediction\"}",
            .unet = "{" UNET_SD "\"attention_head_dim\":[5,10,20,20],\"cross_attention_dim\":1024,"
                    "\"sample_size\":96,\"use_linear_projection\":true,\"upcast_attention\":true,"
                    "\"in_channels\":4}",
            .vae = "{" VAE_SD "\"sample_size\":768,\"scaling_factor\":0.18215}",
            .text = "{" TEXT "\"hidden_act\":\"gelu\",\"hidden_size\":1024,\"intermediate_size\":4096,"
                    "\"num_attention_heads\":16,\"num_hidden_layers\":23,\"projection_dim\":512}",
        },
    [SINGLE_SDXL] =
        {
            .index = "{" PARTS_2
                     "\"_class_name\":\"StableDiffusionXLPipeline\",\"force_zeros_for_empty_prompt\":true}",
            .scheduler = "{\"_class_name\":\"EulerDiscreteScheduler\"," BETAS
                         "\"prediction_type\":\"epsilon\",\"interpolation_type\":\"linear\","
                         "\"timestep_spacing\":\"leading\",\"use_karras_sigmas\":false}",
            .unet = "{\"_class_name\":\"UNet2DConditionModel\",\"act_fn\":\"silu\","
                    "\"block_out_channels\":[320,640,1280],\"down_block_types\":[\"DownBlock2D\","
                    "\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\"],\"up_block_types\":["
                    "\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\",\"UpBlock2D\"],\"downsample_padding\":1,"
                    "\"flip_sin_to_cos\":true,\"freq_shift\":0,\"layers_per_block\":2,"
                    "\"mid_block_scale_factor\":1,\"norm_eps\":1e-05,\"norm_num_groups\":32,"
                    "\"in_channels\":4,\"out_channels\":4,\"attention_head_dim\":[5,10,20],"
                    "\"cross_attention_dim\":2048,\"sample_size\":128,\"use_linear_projection\":true,"
                    "\"transformer_layers_per_block\":[1,2,10],\"addition_embed_type\":\"text_time\","
                    "\"addition_time_embed_dim\":256,\"projection_class_embeddings_input_dim\":2816}",
            .vae = "{" VAE_SD "\"sample_size\":1024,\"scaling_factor\":0.13025,\"force_upcast\":true}",
            .text = TEXT_VIT_L,
            .text_2 = "{" TEXT "\"hidden_act\":\"gelu\",\"hidden_size\":1280,\"intermediate_size\":5120,"
                      "\"num_attention_heads\":20,\"num_hidden_layers\":32,\"projection_dim\":1280}",
        },
};

const char *single_file_config(enum single_family f, const char *component, const char *name)
{
    if (!*component && strcmp(name, "model_index.json") == 0)
        return configs[f].index;
    if (strcmp(component, "scheduler") == 0 && strcmp(name, "scheduler_config.json") == 0)
        return configs[f].scheduler;
    if (strcmp(name, "config.json") != 0)
        return NULL;
    return strcmp(component, "unet") == 0             ? configs[f].unet
           : strcmp(component, "vae") == 0            ? configs[f].vae
           : strcmp(component, "text_encoder") == 0   ? configs[f].text
           : strcmp(component, "text_encoder_2") == 0 ? configs[f].text_2
                                                      : NULL;
}
