/* SPDX-License-Identifier: Apache-2.0 */
/* placeholder until the layer has its first file */
extern int sync_placeholder;
int sync_placeholder;
