// Handshake around a pipeline of LATENCY >= 1 registers that all move when `en` is high.
module edgesdk_pipe #(
    parameter integer LATENCY = 1
) (
    input  wire clk,
    input  wire rst,
    input  wire s_valid,
    output wire s_ready,
    output wire en,
    output wire m_valid,
    input  wire m_ready
);
    reg [LATENCY-1:0] valid;

    assign m_valid = valid[LATENCY-1];
    assign en = !m_valid || m_ready;
    assign s_ready = en;

    generate
        if (LATENCY == 1) begin : one
            always @(posedge clk) if (rst) valid <= 1'b0; else if (en) valid <= s_valid;
        end else begin : many
            always @(posedge clk) if (rst) valid <= {LATENCY{1'b0}}; else if (en) valid <= {valid[LATENCY-2:0], s_valid};
        end
    endgenerate
endmodule
