"""Numbers of images, codes and latents: arrays in, small dataclasses out; METRICS has names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What a number is called wherever people read it."""

    key: str  # its name in `evaluation.json`, in a table's column and in `metrics.jsonl`
    label: str
    digits: int = 3  # decimals that are shown
    unit: str = ""
    better: int = 0  # 1 where higher is better, -1 where lower is, 0 where neither
    compared: bool = False  # a column of the comparison of methods

    @property
    def title(self) -> str:
        """Label and unit, as an axis or a column has them; `active codes` says its unit itself."""
        said = not self.unit or self.unit in self.label
        return self.label if said else f"{self.label}, {self.unit}"

    def text(self, value: float, *, unit: bool = False) -> str:
        """Write a value with its decimals; with its unit where asked."""
        return f"{value:,.{self.digits}f}" + (f" {self.unit}" if unit and self.unit else "")


METRICS = {
    metric.key: metric
    for metric in (
        Metric("psnr", "PSNR", 2, "dB", 1, compared=True),
        Metric("ssim", "SSIM", 4, "", 1, compared=True),
        Metric("ms_ssim", "MS-SSIM", 4, "", 1),
        Metric("l1", "L1, images in [0, 1]", 4, "", -1),
        Metric("perceptual", "perceptual distance", 4, "", -1, compared=True),
        Metric("kid", "KID", 5, "", -1, compared=True),
        Metric("fd", "Fréchet distance", 1, "", -1, compared=True),
        Metric("active", "active codes", 0, "codes", compared=True),
        Metric("active_share", "active codes", 3, "share of K"),
        Metric("perplexity", "perplexity", 0, "codes", compared=True),
        Metric("perplexity_share", "perplexity", 3, "share of K"),
        Metric("gini", "Gini of code use", 3),
        Metric("top_1_percent", "tokens on the most used 1 % of codes", 3, "share"),
        Metric("top_10_percent", "tokens on the most used 10 % of codes", 3, "share"),
        Metric("bits_per_token_nominal", "rate by name, log2 K", 2, "bits a token"),
        Metric("bits_per_token_entropy", "entropy", 2, "bits a token", compared=True),
        Metric("entropy_miller_madow", "entropy, Miller-Madow", 2, "bits a token"),
        Metric("bits_per_token_coded", "coded", 2, "bits a token", -1, compared=True),
        Metric("bits_per_pixel_coded", "coded", 3, "bits a pixel", -1),
        Metric("bits_per_token_prior", "under a prior", 2, "bits a token", -1, compared=True),
        Metric("bits_per_pixel_prior", "under a prior", 3, "bits a pixel", -1),
        Metric("latent_error", "latent error", 4, "share of the variance", -1),
        Metric("effective_dim", "effective dimension", 2),
        Metric("geometry_efficiency", "geometry efficiency", 3, "", 1),
        Metric("nearest_code", "nearest other code, 10 % quantile", 3, "standard deviations"),
        Metric("mass_law_share", "mass-law perplexity", 3, "share of K"),
        Metric("mass_law_perplexity", "mass-law perplexity", 0, "codes"),
        Metric("perplexity_of_mass_law", "perplexity / mass-law perplexity"),
        Metric("partial_slope", "slope of log error on log occupancy", 2),
        Metric("partial_slope_low", "slope, lower end of 95 %", 2),
        Metric("partial_slope_high", "slope, upper end of 95 %", 2),
        Metric("partial_evenness", "evenness of the cells' errors"),
        Metric("spacing", "median distance of a used code to its nearest"),
        Metric("twins", "codes at the place of another", 0, "codes"),
        Metric("hubness", "hubness", 2),
        Metric("long_cells", "cells longer than round", 3, "share"),
        Metric("effective_dim_codes", "effective dimension of the codes", 2),
        Metric("intrinsic_dim", "intrinsic dimension, TwoNN", 2),
        Metric("channels", "channels", 0),
        Metric("num_codes", "codes", 0),
        Metric("num_images", "images", 0),
        Metric("num_tokens", "tokens", 0),
        Metric("whole_psnr", "PSNR, whole photographs", 2, "dB", 1, compared=True),
        Metric("whole_ssim", "SSIM, whole photographs", 4, "", 1),
        Metric("whole_bits_per_pixel", "coded, whole photographs", 3, "bits a pixel", -1),
        Metric("error_below_4", "squared error, periods below 4 pixels", 5, "", -1),
        Metric("error_4_to_8", "squared error, periods of 4 to 8 pixels", 5, "", -1),
        Metric("error_8_to_16", "squared error, periods of 8 to 16 pixels", 5, "", -1),
        Metric("error_above_16", "squared error, periods above 16 pixels", 5, "", -1),
        Metric("error_edges", "squared error at edges", 5, "", -1),
        Metric("error_flat", "squared error in flat regions", 5, "", -1),
        Metric("num_photographs", "whole photographs", 0),
        Metric("images_per_second", "training speed", 0, "images/s", 1, compared=True),
    )
}
"""By key. One row gives a metric its column, axis, unit and direction everywhere."""


def metric(key: str) -> Metric:
    """Give a metric by its key; one that has no row is called by its key."""
    return METRICS.get(key, Metric(key, key.replace("_", " ")))
