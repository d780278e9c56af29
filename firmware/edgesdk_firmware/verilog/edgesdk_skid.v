// Two registers between a source and a sink: neither `s_ready` nor `m_valid` depends on the other side in the same cycle.
module edgesdk_skid #(
    parameter integer WIDTH = 8
) (
    input  wire             clk,
    input  wire             rst,
    input  wire             s_valid,
    output wire             s_ready,
    input  wire [WIDTH-1:0] s_data,
    output reg              m_valid,
    input  wire             m_ready,
    output reg  [WIDTH-1:0] m_data
);
    reg             spare_valid;
    reg [WIDTH-1:0] spare;

    assign s_ready = !spare_valid;

    always @(posedge clk) begin
        if (!m_valid || m_ready) begin
            m_data <= spare_valid ? spare : s_data;
            m_valid <= spare_valid || s_valid;
            spare_valid <= 1'b0;
        end else if (s_valid && s_ready) begin
            spare <= s_data;
            spare_valid <= 1'b1;
        end
        if (rst) begin
            m_valid <= 1'b0;
            spare_valid <= 1'b0;
        end
    end
endmodule
