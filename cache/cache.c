/* SPDX-License-Identifier: Apache-2.0 */
/* placeholder until the layer has its first file */
extern int cache_placeholder;
int cache_placeholder;
